"""Layers that compressors have worked on, of every kind, with what is called and how."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from models import LAYERS, RANK, random, seeded
from torch import Tensor, nn

from skcompress import LowRankCompressor, MagnitudePruner, SVDCompressor
from skcompress.decompositions.low_rank_sparse import LowRankSparse


def _two_steps(dtype: torch.dtype) -> tuple[Tensor, ...]:
    return (random(2, 3, 10, dtype=dtype),)


KINDS: dict[str, tuple[Callable[[], nn.Module], Callable[[torch.dtype], tuple[Tensor, ...]]]] = {
    "linear": LAYERS["linear"],
    "conv1d of transformers": LAYERS["conv1d of transformers"],
    "convolution": LAYERS["convolution"],
    "1-d convolution": (
        lambda: nn.Conv1d(8, 12, 5, dilation=2),
        lambda t: (random(2, 8, 14, dtype=t),),
    ),
    "3-d convolution": (
        lambda: nn.Conv3d(6, 8, (1, 3, 3), padding=1),
        lambda t: (random(2, 6, 4, 6, 5, dtype=t),),
    ),
    "transposed convolution": LAYERS["transposed convolution"],
    "grouped convolution": LAYERS["grouped convolution"],
    "embedding": LAYERS["embedding"],
    "attention": LAYERS["attention"],
    "lstm": (
        lambda: nn.LSTM(10, 12, bidirectional=True),
        _two_steps,
    ),
    "gru": (lambda: nn.GRU(10, 12), _two_steps),
    "rnn": (lambda: nn.RNN(10, 12, nonlinearity="relu"), _two_steps),
    "experts": LAYERS["experts"],
}
RECURRENT = ("lstm", "gru", "rnn")
# Where the batch is not the first axis of every argument.
_AXIS = {"attention": 1, "lstm": 1, "gru": 1, "rnn": 1}

_COMPRESSORS: dict[str, Callable[[], Any]] = {
    "plain": lambda: SVDCompressor(rank=RANK),
    "pivot": lambda: SVDCompressor(rank=RANK, pivot=True),
    "sparse": lambda: LowRankCompressor(LowRankSparse(density=0.1), rank=RANK),
    "pruned": lambda: MagnitudePruner(sparsity=0.5),
}
# Kind and form, of all that there is to try. Embeddings and experts take no pivots.
CASES = [(kind, "plain") for kind in KINDS]
CASES += [(kind, "pivot") for kind in KINDS if kind not in ("embedding", "experts")]
CASES += [(kind, form) for kind in ("linear", "convolution") for form in ("sparse", "pruned")]


@dataclass
class Case:
    """A module, arguments of its forward, and their axis that counts examples."""

    module: nn.Module
    arguments: tuple[Tensor, ...]
    axis: int

    def twice(self, axis: int | None = None) -> tuple[Tensor, ...]:
        """Give arguments for a batch of another size, or of other length along another axis."""
        axis = self.axis if axis is None else axis
        return tuple(torch.cat([x, x], axis) for x in self.arguments)

    def result(self, *arguments: Tensor) -> Any:
        """Call the module on `arguments`, or on those of the case."""
        return self.module(*(arguments or self.arguments))


def case(kind: str, form: str) -> Case:
    """Compress a layer of a kind; new at each call, and always the same."""
    build, arguments = KINDS[kind]
    module = _COMPRESSORS[form]().fit_transform(seeded(build).eval())
    return Case(module, arguments(torch.float32), _AXIS.get(kind, 0))
