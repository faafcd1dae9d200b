"""Pruning by absolute values."""

from __future__ import annotations

from typing import Any, ClassVar

from sklearn.utils._param_validation import StrOptions

from ...criteria.magnitude import Magnitude
from .base import PruningCompressor
from .budget import sparsity_allocation
from .fit import Method


class MagnitudePruner(PruningCompressor):
    """Sets the smallest numbers of a model's weights to zero; needs no data.

    Parameters
    ----------
    sparsity : float in [0, 1), default=0.7
        Share of the weights that is zero afterwards: of those of linear, convolutional, embedding,
        attention, recurrent and expert layers, without biases and normalisations.
    scope : {"global", "layer"}, default="global"
        The smallest numbers of the whole model, or of each weight by itself.
    min_kept : float, int or "auto", default="auto"
        The least share (float) or number (int) of values that stays in each weight, so that none
        vanishes. ``"auto"``: 0.01, or half of what `sparsity` leaves where that is less.
    layers, exclude, device, verbose
        As for :class:`Pruner`, as are the learnt attributes.

    Examples
    --------
    >>> import torch
    >>> model = torch.nn.Linear(20, 10)
    >>> int((MagnitudePruner(0.75).fit_transform(model).weight == 0).sum())
    150

    References
    ----------
    Han et al. 2015, arXiv 1506.02626; Gupta et al. 2022, arXiv 2209.14624 (Global MP: one threshold
    and a least number for each weight).
    """

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        **PruningCompressor._parameter_constraints,
        "scope": [StrOptions({"global", "layer"})],
    }

    def __init__(
        self,
        sparsity: float = 0.7,
        *,
        scope: str = "global",
        min_kept: Any = "auto",
        layers: Any = None,
        exclude: Any = (),
        device: Any = None,
        verbose: bool | int = False,
    ):
        self.sparsity = sparsity
        self.scope = scope
        self.min_kept = min_kept
        self.layers = layers
        self.exclude = exclude
        self.device = device
        self.verbose = verbose

    def _method(self) -> Method:
        allocation = "global" if self.scope == "global" else "uniform"
        return Method(
            Magnitude(),
            self.sparsity,
            sparsity_allocation(type(self).__name__, allocation),
            None,
            self.min_kept,
            refit=False,
        )
