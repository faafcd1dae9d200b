"""Low-rank compression with any decomposition."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

from sklearn.utils._param_validation import HasMethods

from ..spaces import Plugins, SearchSpace
from .base import FactorizingCompressor


@dataclass(eq=False, repr=False)
class LowRankCompressor(FactorizingCompressor):
    """Replaces every layer by a chain of thinner ones, with any decomposition.

    Parameters
    ----------
    decomposition : str, Decomposition, or a tuple of these, default="svd"
        Registered name or instance. Of several, each layer takes the one that loses
        least for the parameters it gets.
    rank : float, int, "auto" or dict, default=0.3
        float in (0, 1]: the fraction of parameters kept; of the whole model under
        ``allocation="global"``, of each layer under ``"uniform"``; under ``"energy"`` the
        fraction of each layer's spectral energy kept. int: that rank in every layer.
        ``"auto"``: an optimal threshold per layer that needs no number. dict of name
        pattern -> any of these, each a budget of the layers it matches first; layers
        that no pattern matches stay dense.
    {settings}

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Linear(64, 64), nn.ReLU(), nn.Linear(64, 64))
    >>> compressor = LowRankCompressor(decomposition="svd", rank=0.5)
    >>> small = compressor.fit_transform(model)
    >>> compressor.n_parameters_out_ / compressor.n_parameters_in_ <= 0.5
    True
    """

    decomposition: Any = "svd"
    rank: Any = 0.3

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        "decomposition": [str, HasMethods("factorize"), list, tuple],
        **FactorizingCompressor._parameter_constraints,
    }
    search_space: ClassVar[SearchSpace] = {"decomposition": Plugins("decompositions")}

    def _candidates(self) -> Iterable[Any]:
        given = self.decomposition
        return given if isinstance(given, list | tuple) else (given,)
