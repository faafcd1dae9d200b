"""Unstructured and semi-structured pruning by any criterion."""

from __future__ import annotations

from numbers import Integral, Real
from typing import Any, ClassVar

from sklearn.utils._param_validation import HasMethods, Interval, StrOptions

from ...protocols import DataCriterion, SparsityAllocation
from ...spaces import Options, Plugins, SearchSpace
from .base import PruningCompressor
from .budget import sparsity_allocation
from .fit import Method
from .patterns import parse_pattern


class Pruner(PruningCompressor):
    """Sets the numbers of a model's weights that matter least to zero, by any criterion.

    What is pruned are the weights of linear, convolutional, embedding, attention, recurrent and
    expert layers, chosen by `layers` and `exclude`, those inside factorised layers too. Biases and
    normalisations are neither pruned nor counted. The result has layers of the same shapes, with
    zeros among their numbers.

    Parameters
    ----------
    criterion : str, Criterion or DataCriterion, default="lamp"
        Registered name or instance: ``"magnitude"``, ``"lamp"``, ``"random"``; with data
        ``"wanda"``, ``"obs"``, ``"taylor"``, ``"fisher"``, ``"lrp"``. Weights are scored as they
        are stored, batch normalisations not folded in.
    sparsity : float in [0, 1), default=0.5
        Share of the weights that are pruned that is zero afterwards, to one number; zeros that are
        there already are among them.
    allocation : str or SparsityAllocation, default="auto"
        How the zeros are divided over the weights. ``"global"``: the least scores of all go.
        ``"relative"``: the same, each score divided by the sum of those of its weight that are not
        smaller. ``"auto"``: ``"relative"`` for criteria that take data, whose scores are of other
        sizes in other layers, ``"global"`` for those that do not.
        ``"uniform"``: the same share everywhere. ``"erk"``: more is kept of small and narrow
        weights. ``"sap"``: more of those whose values are of one size. ``"rd"``: least loss of the
        network's outputs in sum, which takes data.
    pattern : None or "N:M", default=None
        ``"2:4"``, ``"4:8"``: of every M neighbours along the inputs the N with the largest scores
        stay. `sparsity`, `allocation` and `min_kept` are not read then. Weights whose number of
        inputs is no multiple of M stay dense, and the report says so.
    refit : bool, default=False
        With data: fit the values that stay, layer after layer in order of execution, to give what
        the original network gave from what the pruned one is given; biases, or the means of a
        batch normalisation after the layer, take what is left.
    refit_rounds : int, default=1
        With `refit` and more than one round: the criterion and the allocation say how many values
        of each weight stay, and which is decided layer by layer from what the pruned network gives
        it. All values are fitted, those go that cost least after the others of their row make up
        for them, what stays is fitted again, and so on in so many rounds. Closer outputs, for as
        many times the work.
    min_kept : float, int or "auto", default="auto"
        The least share (float) or number (int) of values that stays in each weight, so that none
        vanishes. ``"auto"``: 0.01, or half of what `sparsity` leaves where that is less.
    recalibrate_norm : bool or "auto", default="auto"
        With data: estimate mean and variance of batch normalisations anew. ``"auto"``: if there
        are 64 samples or more, and the outputs come closer by it.
    class_weight : dict, "balanced" or None
        With data ``(inputs, labels)``: how much inputs of each class count, for what a criterion
        asks of the data and for `refit`; 1 for labels that the dict does not have. ``"balanced"``:
        as much more as a class is rarer, as in scikit-learn.
    calibration_memory, max_positions, device, verbose
        As for :class:`LowRankCompressor`.
    layers, exclude : name, glob pattern, module type, or several of these
        What to keep to (None: everything) and what to leave alone.
    random_state : int, RandomState or None
        Seeds criteria that draw random numbers, positions, and outputs drawn for ``"fisher"``.

    Attributes
    ----------
    plan_ : Plan, what happens to each weight
    kept_ : dict of weight name -> values that are not zero
    sparsity_ : float, the share of zeros that was reached
    report_ : Report: dense values, nonzeros and bytes, before and after; with data also what was
        measured on it
    n_parameters_in_, n_parameters_out_ : int, stored numbers, zeros included
    n_nonzeros_in_, n_nonzeros_out_ : int

    There is no inverse: what becomes zero is stored nowhere.

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Linear(20, 50), nn.ReLU(), nn.Linear(50, 10))
    >>> pruner = Pruner("lamp", sparsity=0.9)
    >>> sparse = pruner.fit_transform(model)
    >>> int((sparse[0].weight == 0).sum() + (sparse[2].weight == 0).sum())
    1350
    """

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        **PruningCompressor._parameter_constraints,
        "criterion": [str, HasMethods("scores")],
        "allocation": [str, HasMethods("divide"), HasMethods("allocate")],
        "pattern": [None, str],
        "refit": ["boolean"],
        "refit_rounds": [Interval(Integral, 1, None, closed="left")],
        "recalibrate_norm": ["boolean", StrOptions({"auto"})],
        "class_weight": [None, dict, StrOptions({"balanced"})],
        "calibration_memory": [Interval(Real, 0, None, closed="neither")],
        "max_positions": [None, Interval(Integral, 1, None, closed="left")],
        "random_state": ["random_state"],
    }

    search_space: ClassVar[SearchSpace] = {
        "criterion": Plugins("criteria"),
        "allocation": Plugins("allocations", protocol=SparsityAllocation),
        "refit": Options((False, True), needs_data=True),
    }

    def __init__(
        self,
        criterion: Any = "lamp",
        sparsity: float = 0.5,
        *,
        allocation: Any = "auto",
        pattern: str | None = None,
        refit: bool = False,
        refit_rounds: int = 1,
        min_kept: Any = "auto",
        recalibrate_norm: Any = "auto",
        class_weight: Any = None,
        calibration_memory: float = 2**31,
        max_positions: int | None = None,
        layers: Any = None,
        exclude: Any = (),
        device: Any = None,
        random_state: Any = None,
        verbose: bool | int = False,
    ):
        self.criterion = criterion
        self.sparsity = sparsity
        self.allocation = allocation
        self.pattern = pattern
        self.refit = refit
        self.refit_rounds = refit_rounds
        self.min_kept = min_kept
        self.recalibrate_norm = recalibrate_norm
        self.class_weight = class_weight
        self.calibration_memory = calibration_memory
        self.max_positions = max_positions
        self.layers = layers
        self.exclude = exclude
        self.device = device
        self.random_state = random_state
        self.verbose = verbose

    def _method(self) -> Method:
        owner = type(self).__name__
        criterion = self._resolved_criterion(self.criterion)
        allocation = self.allocation
        if allocation == "auto":
            allocation = "relative" if isinstance(criterion, DataCriterion) else "global"
        return Method(
            criterion,
            self.sparsity,
            sparsity_allocation(owner, allocation),
            parse_pattern(owner, self.pattern),
            self.min_kept,
            self.refit,
            self.refit_rounds,
        )
