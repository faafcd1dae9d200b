"""Low-rank compression by truncated SVD."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import KW_ONLY, dataclass
from typing import Any, ClassVar

from sklearn.utils._param_validation import StrOptions

from ..decompositions.spatial_svd import SpatialSVD
from ..decompositions.svd import SVD
from ..protocols import Decomposition
from ..spaces import Options, SearchSpace
from .base import FactorizingCompressor


@dataclass(eq=False, repr=False)
class SVDCompressor(FactorizingCompressor):
    """Replaces every layer by two thinner ones: truncated SVD, optimal layer by layer.

    Parameters
    ----------
    rank : float, int, "auto" or dict, default=0.3
        As for :class:`LowRankCompressor`: 0.3 keeps 30 % of the model's parameters.
    scheme : {"auto", "output", "input", "spatial"}, default="auto"
        Which matrix a convolution is unfolded to. ``"output"``: k x k to r channels, then
        1 x 1; ``"input"``: 1 x 1 to r, then k x k; ``"spatial"``: k x 1 to r, then 1 x k
        (layers without two kernel axes fall back to "output"); ``"auto"``: per layer the
        one with the least error for the parameters it gets.
    {settings}

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Conv2d(3, 32, 3), nn.ReLU(), nn.Conv2d(32, 64, 3))
    >>> compressor = SVDCompressor(rank=0.3)
    >>> small = compressor.fit_transform(model)
    >>> small(torch.zeros(1, 3, 8, 8)).shape
    torch.Size([1, 64, 4, 4])
    >>> sum(p.numel() for p in small.parameters()) == compressor.n_parameters_out_
    True

    References
    ----------
    Eckart & Young 1936; Denton et al. 2014, arXiv 1404.0736; Jaderberg et al. 2014,
    arXiv 1405.3866; Runkel et al. 2025, arXiv 2505.24469.
    """

    rank: Any = 0.3
    _: KW_ONLY
    scheme: str = "auto"

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        **FactorizingCompressor._parameter_constraints,
        "scheme": [StrOptions({"auto", "output", "input", "spatial"})],
    }
    search_space: ClassVar[SearchSpace] = {
        "scheme": Options(("auto", "output", "input", "spatial"))
    }

    def _candidates(self) -> Iterable[Decomposition]:
        every = {"input": SVD("input"), "spatial": SpatialSVD()}
        chosen = every.values() if self.scheme == "auto" else [every.get(self.scheme)]
        return [SVD("output"), *(d for d in chosen if d is not None)]

    def _competing(
        self, decompositions: Sequence[Decomposition], shape: Sequence[int]
    ) -> list[Decomposition]:
        able = super()._competing(decompositions, shape)
        named = [d for d in able if d.scheme == self.scheme]
        return named or able
