"""Low-rank compression with any decomposition."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, ClassVar

from sklearn.utils._param_validation import HasMethods

from .base import FactorizingCompressor


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
    allocation : str or Allocation, default="global"
        How a float `rank` is divided over the layers: ``"global"``, ``"uniform"``,
        ``"energy"``, ``"auto"`` (which ignores `rank`), or a plugin.
    metric : {"auto", "weights", "activations"}, default="auto"
        What "close" means. ``"weights"``: the Frobenius norm. ``"activations"``: the mean
        squared error of the layer's outputs on the data. ``"auto"``: activations where
        data is given.
    reconstruction : {"auto", "independent", "sequential"}, default="auto"
        With data: every layer by itself, or layer after layer in order of execution, each
        fitted to what the original network gave from what the already compressed one is
        given. ``"auto"``: sequential. Ranks are chosen before, from each layer by itself,
        and so are the errors that the report predicts.
    layers, exclude : name, glob pattern, module type, or several of these
        What to keep to (None: everything) and what to leave alone. A container's name
        stands for all that is inside it.
    device : str or torch.device, default=None
        Where to compute; None for where each weight is. The result lies where the model
        does.
    random_state : int, RandomState or None
        Seeds decompositions that draw random numbers; SVD and Tucker draw none.
    n_jobs : int or None
        Layers factorised at a time, through joblib: `joblib.parallel_config` chooses the
        backend.
    warm_start : bool, default=False
        Keep all factorisations, so that a second `fit` on unchanged weights and data costs
        no SVD whatever `rank` and `allocation` it has; the sequential reconstruction is
        done anew. Data is unchanged if it is the same object.
    verbose : bool or int
        Show a progress bar over layers.

    Attributes
    ----------
    plan_ : Plan, what happens to each weight; `to_dict` makes it JSON-able
    ranks_ : dict of weight name -> rank, for those that are compressed
    spectra_ : dict of weight name -> singular values, descending, of the unfolding that
        was chosen; (groups, k) for grouped layers
    report_ : Report, prints as a table
    n_parameters_in_, n_parameters_out_ : int

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

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        "decomposition": [str, HasMethods("factorize"), list, tuple],
        **FactorizingCompressor._parameter_constraints,
    }

    def __init__(
        self,
        decomposition: Any = "svd",
        rank: Any = 0.3,
        *,
        allocation: Any = "global",
        metric: str = "auto",
        reconstruction: str = "auto",
        layers: Any = None,
        exclude: Any = (),
        device: Any = None,
        random_state: Any = None,
        n_jobs: int | None = None,
        warm_start: bool = False,
        verbose: bool | int = False,
    ):
        super().__init__(
            rank, allocation=allocation, metric=metric, reconstruction=reconstruction,
            layers=layers, exclude=exclude, device=device, random_state=random_state,
            n_jobs=n_jobs, warm_start=warm_start, verbose=verbose,
        )  # fmt: skip
        self.decomposition = decomposition

    def _candidates(self) -> Iterable[Any]:
        given = self.decomposition
        return given if isinstance(given, list | tuple) else (given,)
