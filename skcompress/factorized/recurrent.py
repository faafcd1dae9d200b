"""LSTM, GRU and RNN with factorised weights."""

from __future__ import annotations

import copy
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from ..protocols import Factors
from .kind import Factorized, LayerKind, Memo, Slot, dense_copy, overrides
from .linear import FactorizedLinear

_BASES: tuple[type[nn.RNNBase], ...] = (nn.LSTM, nn.GRU, nn.RNN)
_SETTINGS = ("mode", "input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout",
             "bidirectional", "proj_size", "_flat_weights_names", "_all_weights")  # fmt: skip


class FactorizedRecurrent(nn.Module, Factorized):
    """Stands in for `nn.LSTM`, `nn.GRU` or `nn.RNN`: same arguments, same results.

    The fused recurrent kernels take whole matrices, so the factors are multiplied out at
    every call: it stores fewer numbers but is no faster. `weight_ih_l0` and the other
    names of the original give the multiplied-out weights; those left dense are
    parameters of the same name.
    """

    def __init__(self, like: nn.RNNBase, factors: Mapping[str, nn.Module], memo: Memo):
        super().__init__()
        self._base = _base(like)
        for name in _SETTINGS:
            setattr(self, name, copy.deepcopy(getattr(like, name)))
        self.factors = nn.ModuleDict(factors)
        for name in self._flat_weights_names:
            if name not in factors:
                self.register_parameter(name, dense_copy(getattr(like, name), memo))

    def __getattr__(self, name: str) -> Any:
        modules = self.__dict__.get("_modules", {})
        if "factors" in modules and name in modules["factors"]:
            return modules["factors"][name].weight
        return super().__getattr__(name)

    @property
    def all_weights(self) -> list[list[Tensor]]:
        """Weights and biases of each layer and direction."""
        return [[getattr(self, name) for name in names] for names in self._all_weights]

    def flatten_parameters(self) -> None:
        """Do nothing: cuDNN's flat layout is for whole matrices."""

    def forward(self, input: Any, hx: Any = None) -> Any:
        # A throw-away recurrent layer around this call's weights runs torch's own forward;
        # unlike swapping tensors in a shared module it is safe under threads.
        layer = object.__new__(self._base)
        layer.__dict__.update(self.__dict__)
        weights = [getattr(self, name) for name in self._flat_weights_names]
        layer.__dict__.update(_flat_weights=weights, _flat_weight_refs=[None] * len(weights))
        return self._base.forward(layer, input, hx)

    def extra_repr(self) -> str:
        return f"{self._base.__name__}, {self.input_size}, {self.hidden_size}"

    def to_dense(self, memo: Memo) -> nn.Module:
        settings = {name: getattr(self, name) for name in _SETTINGS[1:8]}
        if self._base is nn.LSTM:
            settings["proj_size"] = self.proj_size
        if self._base is nn.RNN:
            settings["nonlinearity"] = self.mode.removeprefix("RNN_").lower()
        layer = self._base(**settings, device="meta")
        for name in self._flat_weights_names:
            if name in self.factors:
                stages = list(self.factors[name].parameters())
                with torch.no_grad():
                    product = getattr(self, name).clone()
                value = nn.Parameter(product, any(s.requires_grad for s in stages))
            else:
                value = dense_copy(getattr(self, name), memo)
            setattr(layer, name, value)
        return layer


def _base(module: nn.Module) -> type[nn.RNNBase]:
    return next(base for base in _BASES if isinstance(module, base))


class RecurrentKind(LayerKind):
    """`nn.LSTM`, `nn.GRU`, `nn.RNN`: every weight of every layer and direction."""

    name = "Recurrent"

    def matches(self, module: nn.Module) -> bool:
        return isinstance(module, _BASES)

    def refusal(self, module: nn.Module) -> str | None:
        hooks = module._forward_pre_hooks.values()
        if hasattr(module, "parametrizations") or any(hasattr(h, "compute_weight") for h in hooks):
            return "parametrized: torch's recurrent kernels need the parameters themselves"
        return overrides(module, _base(module))

    def slots(self, module: Any) -> list[Slot]:
        names = [n for n in module._flat_weights_names if n.startswith("weight")]
        return [
            Slot(name, 1, _matrix(getattr(module, name)), (getattr(module, name),), tieable=False)
            for name in names
        ]

    def build(self, module: Any, factors: Mapping[str, Factors], memo: Memo) -> nn.Module:
        chains = {n: FactorizedLinear.from_factors(f, None) for n, f in factors.items()}
        return FactorizedRecurrent(module, chains, memo)


def _matrix(parameter: Tensor) -> Callable[[], Tensor]:
    return lambda: parameter[None]
