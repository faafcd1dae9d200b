"""Low-rank compression by Tucker-2."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any

from ..decompositions.tucker import Tucker
from ..protocols import Decomposition
from .base import FactorizingCompressor


@dataclass(eq=False, repr=False)
class TuckerCompressor(FactorizingCompressor):
    """Tucker-2 on convolutions (1 x 1, k x k between fewer channels, 1 x 1), SVD elsewhere.

    Parameters
    ----------
    rank : float, int, "auto" or dict, default=0.3
        As for :class:`LowRankCompressor`. In `ranks_` a convolution has a pair (outputs,
        inputs); an int asks for that many of both.
    {settings}

    Examples
    --------
    >>> import torch
    >>> model = torch.nn.Sequential(torch.nn.Conv2d(16, 32, 3), torch.nn.Conv2d(32, 32, 3))
    >>> small = TuckerCompressor(rank=0.4, allocation="uniform").fit_transform(model)
    >>> [len(layer) for layer in small]
    [3, 3]

    References
    ----------
    Kim et al. 2016, "Compression of deep convolutional neural networks for fast and low
    power mobile applications", arXiv 1511.06530.
    """

    rank: Any = 0.3

    def _candidates(self) -> Iterable[Decomposition]:
        return (Tucker(),)
