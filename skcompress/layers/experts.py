"""Mixture-of-experts blocks of transformers, whose experts are one 3-D parameter."""

from __future__ import annotations

import copy
import inspect
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..protocols import Factorized, Factors, Inputs, LayerKind, Memo, Rows, Slot
from .taking_over import dense_copy

_WEIGHTS = ("gate_up_proj", "down_proj")
_ARGUMENTS = ["hidden_states", "top_k_index", "top_k_weights"]


class FactorizedExperts(nn.Module, Factorized):
    """Experts whose two projections are chains of thinner ones.

    Stage j of a projection is one parameter (experts, out_j, in_j), `gate_up_proj_0` and so
    on; a projection that stays dense keeps its name. They are parameters of this module,
    whose forward uses them: there offloading and sharding look for them. Every expert works
    on its own tokens only, as the original does; the gate between the projections is the
    original's own.
    """

    kind = "experts"
    own = ("_base", "_n_stages")

    def __init__(self, like: nn.Module, stages: Mapping[str, Sequence[nn.Parameter]], memo: Memo):
        super().__init__()
        self._base = type(like)
        for name, child in like.named_children():
            self.add_module(name, copy.deepcopy(child, memo))
        self._n_stages = {name: len(chain) for name, chain in stages.items()}
        for name, chain in stages.items():
            if len(chain) == 1:
                self.register_parameter(name, chain[0])
                continue
            for number, stage in enumerate(chain):
                self.register_parameter(f"{name}_{number}", stage)

    def _stages(self, name: str) -> list[nn.Parameter]:
        n_stages = self._n_stages[name]
        if n_stages == 1:
            return [self._parameters[name]]  # type: ignore[list-item]
        return [getattr(self, f"{name}_{number}") for number in range(n_stages)]

    def __getattr__(self, name: str) -> Any:
        if self.__dict__.get("_n_stages", {}).get(name, 1) > 1:
            first, *others = self._stages(name)
            product = first
            for stage in others:
                product = stage @ product
            return product
        return super().__getattr__(name)

    def factors(self) -> dict[str, Factors]:
        found = {}
        for name, n_stages in self._n_stages.items():
            if n_stages > 1:
                stages = self._stages(name)
                groups = (len(stages[0]),) * n_stages
                found[name] = Factors(tuple(t.flatten(0, 1) for t in stages), groups)
        return found

    def _project(self, name: str, expert: int, x: Tensor) -> Tensor:
        for stage in self._stages(name):
            x = x @ stage[expert].mT
        return x

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        n_experts = len(self._stages("down_proj")[0])
        # Its gate may use whatever the original has: methods, attributes, submodules.
        original = object.__new__(self._base)
        original.__dict__.update(self.__dict__)
        output = torch.zeros_like(hidden_states)
        for expert in range(n_experts):
            token, place = torch.where(top_k_index == expert)
            inner = self._project("gate_up_proj", expert, hidden_states[token])
            gated: Tensor = original._apply_gate(inner)  # type: ignore[operator]
            result = self._project("down_proj", expert, gated) * top_k_weights[token, place, None]
            output = output.index_add(0, token, result.to(output.dtype))
        return output

    def to_plain(self, memo: Memo) -> str:
        return "experts, which are no layer of torch.nn"

    def to_dense(self, memo: Memo) -> nn.Module:
        layer = object.__new__(self._base)
        nn.Module.__init__(layer)
        for name, child in self.named_children():
            layer.add_module(name, copy.deepcopy(child, memo))
        for name in _WEIGHTS:
            stages = self._stages(name)
            if len(stages) == 1:
                weight = dense_copy(stages[0], memo)
            else:
                trained = any(stage.requires_grad for stage in stages)
                weight = nn.Parameter(getattr(self, name).detach(), trained)
            layer.register_parameter(name, weight)
        return layer


class ExpertsKind(LayerKind):
    """Expert blocks that follow the common layout of transformers (Mixtral, Qwen-MoE, ...).

    `gate_up_proj` (experts, 2 inner, hidden) and `down_proj` (experts, hidden, inner),
    called with hidden states (tokens, hidden), expert indices and their weights
    (tokens, k); the gate between them is `_apply_gate`.
    """

    # Counting without values, as compressors do, cannot know the tokens of each expert.
    saves_no_flops = "the FLOPs of an expert depend on the tokens it is sent: they are not counted"

    def matches(self, module: nn.Module) -> bool:
        return all(
            isinstance(p := module._parameters.get(name), nn.Parameter) and p.dim() == 3
            for name in _WEIGHTS
        )

    def refusal(self, module: Any) -> str | None:
        weighty = [n for n, child in module.named_children() if list(child.parameters())]
        further = {*module._parameters, *module._buffers, *weighty}.difference(_WEIGHTS)
        if further:
            listed = ", ".join(sorted(further))
            return f"experts that also hold {listed}: their forward is not known"
        flags = {"has_gate": True, "has_bias": False, "is_transposed": False,
                 "has_post_expert_norm": False, "_is_expert_parallel": False}  # fmt: skip
        different = [n for n, wanted in flags.items() if getattr(module, n, None) is not wanted]
        arguments = list(inspect.signature(type(module).forward).parameters)[1:]
        if different or not hasattr(module, "_apply_gate") or arguments != _ARGUMENTS:
            return "experts whose layout is not the common one of transformers"
        return None

    def slots(self, module: Any) -> list[Slot]:
        return [self._slot(module, name) for name in _WEIGHTS]

    @staticmethod
    def _slot(module: Any, name: str) -> Slot:
        parameter = getattr(module, name)
        return Slot(name, len(parameter), lambda: parameter, (parameter,), tieable=False)

    def build(self, module: Any, factors: Mapping[str, Factors], memo: Memo) -> nn.Module:
        chains: dict[str, list[nn.Parameter]] = {}
        for slot in self.slots(module):
            name, n_experts = slot.name, slot.groups
            if name in factors:
                chain = [
                    nn.Parameter(t.detach().unflatten(0, (n_experts, -1)), t.requires_grad)
                    for t in factors[name].tensors
                ]
            else:
                chain = [copy.deepcopy(slot.parameters[0], memo)]
            chains[name] = chain
        return FactorizedExperts(module, chains, memo)

    def inputs(
        self, module: Any, wanted: Collection[str], call: Mapping[str, Any]
    ) -> Iterator[tuple[str, Inputs]]:
        hidden, chosen = call["hidden_states"], call["top_k_index"]
        for expert, weight in enumerate(module.gate_up_proj):
            token, _ = torch.where(chosen == expert)
            x = hidden[token]
            lead = (len(hidden),)
            yield "gate_up_proj", Rows(x, lead, place=token, group=expert)
            if "down_proj" in wanted:
                gated = module._apply_gate(F.linear(x, weight))
                yield "down_proj", Rows(gated, lead, place=token, group=expert)
