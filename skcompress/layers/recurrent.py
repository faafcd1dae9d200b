"""LSTM, GRU and RNN with factorised weights."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from ..protocols import Factorized, Factors, Inputs, LayerKind, Memo, Recurrence, Slot
from .hidden_states import recurrent_inputs
from .linear import FactorizedLinear
from .recurrences import LayerRecurrence
from .reparametrized import computed_names, holds_more
from .taking_over import dense_copy, matrix_reader, overrides

_BASES: dict[str, type[nn.RNNBase]] = {
    "LSTM": nn.LSTM,
    "GRU": nn.GRU,
    "RNN_TANH": nn.RNN,
    "RNN_RELU": nn.RNN,
}
_SETTINGS = ("mode", "input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout",
             "bidirectional", "proj_size", "_flat_weights_names", "_all_weights")  # fmt: skip


class FactorizedRecurrent(nn.Module, Factorized):
    """Stands in for `nn.LSTM`, `nn.GRU` or `nn.RNN`: same arguments, same results.

    The fused recurrent kernels take whole matrices, so the factors are multiplied out at
    every call: it stores fewer numbers but is no faster. That is done by calling the layers
    that hold them, whose hooks may have to fetch them first (offloading, sharding).
    `weight_ih_l0` and the other names of the original give the multiplied-out weights; those
    left dense are parameters of the same name.
    """

    kind = "recurrent"

    def __init__(self, like: nn.RNNBase, factors: Mapping[str, nn.Module], memo: Memo):
        super().__init__()
        for name in _SETTINGS:
            setattr(self, name, copy.deepcopy(getattr(like, name)))
        self.chains = nn.ModuleDict(factors)
        for name in self._flat_weights_names:
            if name not in factors:
                self.register_parameter(name, dense_copy(getattr(like, name), memo))

    def __getattr__(self, name: str) -> Any:
        modules = self.__dict__.get("_modules", {})
        if "chains" in modules and name in modules["chains"]:
            return modules["chains"][name].weight
        return super().__getattr__(name)

    @property
    def _flat_weights(self) -> list[Tensor]:
        return [getattr(self, name) for name in self._flat_weights_names]

    @property
    def _flat_weight_refs(self) -> list[None]:
        return [None] * len(self._flat_weights_names)

    @property
    def all_weights(self) -> list[list[Tensor]]:
        """Weights and biases of each layer and direction."""
        return [[getattr(self, name) for name in names] for names in self._all_weights]

    def flatten_parameters(self) -> None:
        """Do nothing: cuDNN's flat layout is for whole matrices."""

    def forward(self, input: Any, hx: Any = None) -> Any:
        # A throw-away recurrent layer around this call's weights runs torch's own forward;
        # unlike swapping tensors in a shared module it is safe under threads.
        base = _BASES[self.mode]
        layer = object.__new__(base)
        layer.__dict__.update(self.__dict__)
        like = input.data if isinstance(input, PackedSequence) else input
        called = {name: _product(chain, like) for name, chain in self.chains.items()}
        layer.__dict__["_flat_weights"] = [
            called[name] if name in called else getattr(self, name)
            for name in self._flat_weights_names
        ]
        layer.__dict__["_flat_weight_refs"] = self._flat_weight_refs
        return base.forward(layer, input, hx)

    def extra_repr(self) -> str:
        return f"{_BASES[self.mode].__name__}, {self.input_size}, {self.hidden_size}"

    def factors(self) -> dict[str, Factors]:
        return {name: chain.factors()[""] for name, chain in self.chains.items()}

    def to_plain(self, memo: Memo) -> str:
        return "factors inside a recurrence, whose kernels take whole matrices"

    def to_dense(self, memo: Memo) -> nn.Module:
        settings = {name: getattr(self, name) for name in _SETTINGS[1:8]}
        if self.mode == "LSTM":
            settings["proj_size"] = self.proj_size
        elif self.mode != "GRU":
            settings["nonlinearity"] = self.mode.removeprefix("RNN_").lower()
        layer = _BASES[self.mode](**settings, device="meta")
        for name in self._flat_weights_names:
            if name in self.chains:
                stages = list(self.chains[name].parameters())
                with torch.no_grad():
                    product = getattr(self, name).clone()
                value = nn.Parameter(product, any(s.requires_grad for s in stages))
            else:
                value = dense_copy(getattr(self, name), memo)
            setattr(layer, name, value)
        return layer


def _product(chain: Any, like: Tensor) -> Tensor:
    """Weight of a chain, as what it gives for each unit vector, where `like` lies."""
    with torch.autocast(like.device.type, enabled=False):
        unit = torch.eye(chain.in_features, dtype=like.dtype, device=like.device)
        product: Tensor = chain(unit).mT
    return product


class RecurrentKind(LayerKind):
    """`nn.LSTM`, `nn.GRU`, `nn.RNN`: every weight of every layer and direction."""

    types = (nn.LSTM, nn.GRU, nn.RNN)
    saves_no_flops = "its factors are multiplied out at every call, which saves no FLOPs"
    takes_pivots = True
    takes_sparse = True

    def refusal(self, module: Any) -> str | None:
        if computed_names(module):
            return "parametrized: torch's recurrent kernels need the parameters themselves"
        return overrides(module, _BASES[module.mode]) or holds_more(
            module, module._flat_weights_names
        )

    def slots(self, module: Any) -> list[Slot]:
        names = [n for n in module._flat_weights_names if n.startswith("weight")]
        # Nothing is added to what a projection gives.
        biased = {n for n in names if module.bias and not n.startswith("weight_hr")}
        return [
            Slot(
                name,
                1,
                matrix_reader(getattr(module, name)),
                (getattr(module, name),),
                tieable=False,
                bias=name.replace("weight", "bias") if name in biased else None,
            )
            for name in names
        ]

    def build(self, module: Any, factors: Mapping[str, Factors], memo: Memo) -> nn.Module:
        chains = {n: FactorizedLinear.from_factors(f, None) for n, f in factors.items()}
        return FactorizedRecurrent(module, chains, memo)

    def inputs(
        self, module: Any, wanted: Collection[str], call: Mapping[str, Any]
    ) -> Iterator[tuple[str, Inputs]]:
        base = _BASES[module.mode]
        yield from recurrent_inputs(module, base, wanted, call["input"], call["hx"])

    def recurrences(self, module: Any) -> Sequence[Recurrence]:
        base = _BASES[module.mode]
        return [LayerRecurrence(module, base, depth) for depth in range(module.num_layers)]
