"""Embeddings as a narrow embedding followed by a linear layer."""

from __future__ import annotations

import copy
from collections.abc import Collection, Iterator, Mapping
from typing import Any

from torch import Tensor, nn

from ..protocols import Factorized, Factors, LayerKind, Lookups, Memo, Slot
from ..protocols.product import multiply_out
from .linear import dense_weight
from .reparametrized import storage_refusal, weight_parameters, weight_reader
from .taking_over import overrides

_SETTINGS = ("padding_idx", "max_norm", "norm_type", "scale_grad_by_freq", "sparse")


class Widen(nn.Module):
    """x @ weight, for a weight stored (in, out).

    `nn.Linear` stores (out, in); a tied output head stores the same factor the other way
    round, and one parameter has to serve both.
    """

    def __init__(self, weight: nn.Parameter):
        super().__init__()
        self.weight = weight

    def forward(self, input: Tensor) -> Tensor:
        # Under autocast the product comes in a lower precision, which a look-up never does.
        return (input @ self.weight).to(input.dtype)

    def extra_repr(self) -> str:
        return f"in_features={self.weight.shape[0]}, out_features={self.weight.shape[1]}"


def _embedding(weight: nn.Parameter, like: Any) -> nn.Embedding:
    """Make an `nn.Embedding` around an existing parameter, with the settings of `like`."""
    settings = {name: getattr(like, name) for name in _SETTINGS}
    layer = nn.Embedding(*weight.shape, device="meta", **settings)
    layer.weight = weight
    return layer


class FactorizedEmbedding(nn.Sequential, Factorized):
    """`nn.Embedding` of width r, then the way up to `embedding_dim`.

    Reading `weight` multiplies the factors out: (num_embeddings, embedding_dim).
    """

    kind = "embedding"

    @classmethod
    def from_factors(cls, embedding: nn.Embedding, factors: Factors) -> FactorizedEmbedding:
        """Build from parameters of shapes (r, dim), ..., (num, s): the last is looked up."""
        *inner, table = factors.tensors
        widen = (Widen(t) for t in reversed(inner))  # type: ignore[arg-type]
        layer = cls(_embedding(table, embedding), *widen)  # type: ignore[arg-type]
        for name in ("num_embeddings", "embedding_dim", *_SETTINGS):
            setattr(layer, name, getattr(embedding, name))
        return layer

    def _stages(self) -> tuple[Tensor, ...]:
        return tuple(stage.weight for stage in reversed(list(self)))

    @property
    def weight(self) -> Tensor:
        return multiply_out(self.factors()[""])

    def factors(self) -> dict[str, Factors]:
        return {"": Factors(self._stages(), (1,) * len(self))}

    def to_plain(self, memo: Memo) -> nn.Module:
        table, *widen = self
        return nn.Sequential(copy.deepcopy(table, memo), *(_transposed(w.weight) for w in widen))

    def to_dense(self, memo: Memo) -> nn.Module:
        return _embedding(dense_weight(self, self._stages(), memo), self)


def _transposed(weight: Tensor) -> nn.Linear:
    """Make an `nn.Linear` that does what `Widen` does."""
    layer = nn.Linear(*weight.shape, bias=False, device="meta")
    layer.weight = nn.Parameter(weight.detach().mT.clone(), weight.requires_grad)
    return layer


class EmbeddingKind(LayerKind):
    """`torch.nn.Embedding`: its weight (num_embeddings, embedding_dim) is the matrix."""

    types = (nn.Embedding,)

    def refusal(self, module: Any) -> str | None:
        if module.max_norm is not None:
            return "max_norm rescales whole rows at every look-up, which factors cannot do"
        return overrides(module, nn.Embedding) or storage_refusal(module)

    def slots(self, module: nn.Module) -> list[Slot]:
        read = weight_reader(module)
        return [Slot("", 1, lambda: read()[None], weight_parameters(module))]

    def build(self, module: Any, factors: Mapping[str, Factors], memo: Memo) -> nn.Module:
        return FactorizedEmbedding.from_factors(module, factors[""])

    def stages(self, stand_in: nn.Module, slot: str) -> list[str]:
        return super().stages(stand_in, slot)[::-1]  # the factor looked up is the last

    def inputs(
        self, module: nn.Module, wanted: Collection[str], call: Mapping[str, Any]
    ) -> Iterator[tuple[str, Lookups]]:
        yield "", Lookups(call["input"])
