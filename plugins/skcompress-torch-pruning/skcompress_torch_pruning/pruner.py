"""Whole channels, removed for good."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from numbers import Integral, Real
from typing import Any, ClassVar

import torch
from sklearn.utils._param_validation import Interval, InvalidParameterError, StrOptions
from sklearn.utils.validation import check_is_fitted
from torch import nn

from skcompress.compressors.checks import PATTERNS
from skcompress.errors import CalibratedWeightError, NoLayerError
from skcompress.fitting.calibrated import Calibration
from skcompress.fitting.fitting import set_norms
from skcompress.fitting.steps import Steps
from skcompress.layers.reparametrized import copied
from skcompress.metrics import count_flops, count_parameters
from skcompress.network.batches import Batches, device_of
from skcompress.network.batches import batches as as_batches
from skcompress.network.calls import count_calls
from skcompress.network.observing import observer
from skcompress.network.weighting import weighted
from skcompress.network.weights import Selection, Site, check_model, check_patterns, select
from skcompress.protocols import Compressor
from skcompress.spaces import FloatRange, Options, SearchSpace

from .budget import channel_costs, choose, flop_costs, parameter_costs
from .closeness import Closeness
from .criteria import DATA, PLAIN, rankings
from .errors import NoInputsError
from .groups import ChannelGroup, removal
from .plan import ChannelReport
from .planning import excluded, make_plan, unwanted
from .refitting import ChannelRefit, Fit, apply_
from .removing import mixes, remove_
from .tracing import Trace, example, trace
from .values import check_values, fingerprints
from .verifying import Trial, resizes, verified


class ChannelPruner(Compressor):
    """Removes whole channels: of every layer that gives them, and of every layer that reads them.

    What is left are the same layers with fewer channels, dense and plain, in a copy of the model.
    Which channels depend on each other (residual sums, concatenations, groups, depthwise
    convolutions, attention heads) is read off one forward by torch-pruning's dependency graph, and
    tried out before any channel goes: a group stays, with a reason in the report, unless the model
    without some of its channels gives what the model gives that does not read them. Outputs of
    the model are never removed, and channels that a layer normalisation averages over stay.

    Parameters
    ----------
    ratio : float in [0, 1), default=0.5
        Share to be removed, of what `cost` says: 0.5 halves the model's parameters. The result
        removes as much or a little more, never less.
    criterion : str or torch-pruning importance, default="merge"
        What a channel is worth.

        - ``"l1"``, ``"l2"``: sums of absolute or squared weights over all layers that give or read
          it, relative to the mean of its group (torch-pruning's group norm, on weights as they are,
          normalisations not folded in);
        - ``"batch_norm"``: its scales in batch normalisations, relative to the mean of its group;
        - ``"taylor"``: squared first-order change of the log-likelihood of the labels, or of labels
          that the model draws itself where the data has none;
        - ``"lrp"``: relevance for the labelled or the most probable class that flows through it;
        - ``"merge"``: what the layers that read it lose when it is predicted from the channels that
          stay, by least squares on the data; then they are fitted to do without it;
        - ``"random"``: nothing, as a baseline.
    cost : {"parameters", "flops", "channels"}, default="parameters"
        What `ratio` is a share of: the model's stored numbers, the operations of one forward of
        the first batch, or the channels that may go. Half of the channels of every layer is about
        three quarters of the parameters.
    allocation : {"global", "uniform"}, default="global"
        The channels of least score wherever they are, or the same share of every group.
    min_kept : float in (0, 1) or int, default=0.1
        Share or number of channels that each group keeps at least.
    round_to : int or None, default=None
        Keep a multiple of so many channels, where any go; hardware likes 8.
    refit : bool, "all" or "auto", default="auto"
        Fit the layers that lost inputs to give what they gave, by least squares on the data, one
        after another in order of execution, each from what the smaller network gives it. "all":
        also linear layers and convolutions that lost none, which make up for what was lost before
        them. "auto": "all" with ``criterion="merge"``, otherwise none.
    recalibrate_norm : bool or "auto", default="auto"
        Estimate mean and variance of batch normalisations anew on the data. "auto": where there are
        64 inputs or more and the outputs come closer by it.
    class_weight : dict, "balanced" or None, default=None
        How much samples of each class count, by the data's labels: in the scores of "taylor",
        "lrp" and "merge", and in the fit. Rare or costly classes keep more of their accuracy.
    num_heads : dict of name pattern -> int, or None
        Heads of attention modules that do not hold that number in an attribute of a usual name.
        Whole heads go.
    layers, exclude : name, glob pattern, module type, or several of these
        Whose outputs may be removed (None: everything's), and whose may not. Coupled channels go
        only if all layers that give them agree.
    calibration_memory : float, default=2 GiB
        Bytes for the statistics of one pass over the data. With less there are more passes.
    max_positions : int or None, default=None
        How many positions of one call of a layer are used at most, drawn with `random_state`.
    random_state : int, RandomState or None
        Seeds labels, positions and random scores; None gives the same every time.
    verbose : bool or int
        Show progress bars.

    Attributes
    ----------
    plan_ : ChannelPlan, which channels stay; `to_dict` makes it JSON-able
    report_ : ChannelReport, prints as a table
    n_parameters_in_, n_parameters_out_, n_flops_in_, n_flops_out_ : int

    Examples
    --------
    >>> import torch
    >>> from torch import nn
    >>> model = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.Flatten(),
    ...                       nn.Linear(256, 10))
    >>> pruner = ChannelPruner(ratio=0.4, criterion="l2")
    >>> small = pruner.fit_transform(model, torch.randn(64, 3, 8, 8))
    >>> small(torch.zeros(1, 3, 8, 8)).shape
    torch.Size([1, 10])
    >>> pruner.n_parameters_out_ <= 0.6 * pruner.n_parameters_in_
    True

    References
    ----------
    Fang et al. 2023, arXiv 2301.12900 (dependency graph); Yeom et al. 2021, arXiv 1912.08881
    (relevance); Molchanov et al. 2019, arXiv 1906.10771 (Taylor); Liu et al. 2017, arXiv 1708.06519
    (scales of normalisations).
    """

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        "ratio": [Interval(Real, 0, 1, closed="left")],
        "criterion": [StrOptions({*PLAIN, *DATA}), callable],
        "cost": [StrOptions({"parameters", "flops", "channels"})],
        "allocation": [StrOptions({"global", "uniform"})],
        "min_kept": [
            Interval(Real, 0, 1, closed="neither"), Interval(Integral, 1, None, closed="left"),
        ],
        "round_to": [None, Interval(Integral, 1, None, closed="left")],
        "refit": ["boolean", StrOptions({"auto", "all"})],
        "recalibrate_norm": ["boolean", StrOptions({"auto"})],
        "class_weight": [None, dict, StrOptions({"balanced"})],
        "num_heads": [None, dict],
        "layers": PATTERNS,
        "exclude": PATTERNS,
        "calibration_memory": [Interval(Real, 0, None, closed="neither")],
        "max_positions": [None, Interval(Integral, 1, None, closed="left")],
        "random_state": ["random_state"],
        "verbose": ["verbose"],
    }  # fmt: skip
    search_space: ClassVar[SearchSpace] = {
        "ratio": FloatRange(0.1, 0.8),
        "criterion": Options((*sorted(PLAIN), *sorted(DATA))),
        "allocation": Options(("global", "uniform")),
    }

    def __init__(
        self,
        ratio: float = 0.5,
        criterion: Any = "merge",
        *,
        cost: str = "parameters",
        allocation: str = "global",
        min_kept: float = 0.1,
        round_to: int | None = None,
        refit: bool | str = "auto",
        recalibrate_norm: bool | str = "auto",
        class_weight: Any = None,
        num_heads: Any = None,
        layers: Any = None,
        exclude: Any = (),
        calibration_memory: float = 2**31,
        max_positions: int | None = None,
        random_state: Any = None,
        verbose: bool | int = False,
    ):
        self.ratio = ratio
        self.criterion = criterion
        self.cost = cost
        self.allocation = allocation
        self.min_kept = min_kept
        self.round_to = round_to
        self.refit = refit
        self.recalibrate_norm = recalibrate_norm
        self.class_weight = class_weight
        self.num_heads = num_heads
        self.layers = layers
        self.exclude = exclude
        self.calibration_memory = calibration_memory
        self.max_positions = max_positions
        self.random_state = random_state
        self.verbose = verbose

    @torch.no_grad()
    def fit(
        self, model: nn.Module, data: object = None, sample_weight: object = None
    ) -> ChannelPruner:
        """Choose the channels that go; `model` stays as it is.

        model : torch.nn.Module with values
        data : inputs, labelled or not, as for `SVDCompressor`; a batch (inputs, labels) or a dict
            with "labels" has labels. Needed by every criterion, since dependencies are read off
            a forward: one batch will do for those that look at weights alone.
        sample_weight : array (n,), how much each sample counts, in the order of the data; times
            `class_weight`
        """
        self._validate_params()
        owner = type(self).__name__
        if isinstance(self.ratio, bool):
            rule = "a float in the range [0.0, 1.0)"
            raise InvalidParameterError(
                f"The 'ratio' parameter of {owner} must be {rule}. Got {self.ratio!r} instead."
            )
        check_model(owner, model)
        if data is None:
            raise NoInputsError(owner)
        check_patterns("layers", self.layers, model)
        check_patterns("exclude", self.exclude, model)
        check_values(model)
        batches = as_batches(owner, data, model)
        data_in = weighted(batches, self.class_weight, sample_weight)
        steps = Steps(device_of(model))
        selection = select(model)
        sites = {s.users[0][0]: s for s in selection.sites if s.alone and mixes(s.modules[0])}

        with steps("trace"):
            found, groups = self._groups(model, batches, selection)
        with steps("observe"):
            given = Calibration.observed(
                data_in, model, list(sites.values()), memory=self.calibration_memory,
                max_positions=self.max_positions, random_state=self.random_state,
            )  # fmt: skip
        with steps("rank"):
            open_ = [group for group in groups if group.reason is None]
            ranked, reasons = rankings(
                self.criterion, model, open_, found, given, sites, self.verbose
            )
        groups = excluded(groups, reasons)
        open_ = [group for group in groups if group.reason is None]
        if not open_:
            raise NoLayerError(owner, [(g.name, g.reason or "") for g in groups])
        chosen = self._chosen(model, open_, ranked, sites, batches)

        gone = removal(chosen)
        resized = resizes(chosen)
        fits: dict[str, Fit] = {}
        refit = self.refit
        if refit == "auto":
            refit = "all" if self.criterion == "merge" else False
        if refit:
            everything = refit == "all"
            readers = [s for n, s in sites.items() if everything or gone.get(n, ([], []))[1]]
            with steps("refit"):
                fits = ChannelRefit(gone, given).run(model, readers, self.verbose)
        small = copied(model)
        apply_(small.get_submodule, fits)
        remove_(small, gone, resized)
        closeness = Closeness(model, batches, self.calibration_memory)
        with steps("recalibrate"):
            norms, divergence = closeness.best(small, self.recalibrate_norm)
        set_norms(small, norms)

        self.plan_ = make_plan(
            model, small, groups, {group.name: units for group, units in chosen}, gone, resized
        )
        self.n_parameters_in_, self.n_parameters_out_ = map(count_parameters, (model, small))
        first = next(iter(batches))
        self.n_flops_in_, self.n_flops_out_ = (
            count_flops(observer(network), *first.args, **first.kwargs)
            for network in (model, small)
        )
        self.report_ = ChannelReport(
            self.plan_, self.n_parameters_in_, self.n_parameters_out_,
            (self.n_flops_in_, self.n_flops_out_), divergence, tuple(steps.done),
        )  # fmt: skip
        self._fits, self._norms = fits, norms
        self._seen = fingerprints(model, self.plan_.layers) if fits or norms else {}
        return self

    @torch.no_grad()
    def transform(self, model: nn.Module) -> nn.Module:
        """Give a copy of `model` without the planned channels.

        model : the fitted model or another one of the same architecture (a later checkpoint; a
            model on the meta device). Where layers were fitted or normalisations recalibrated with
            the data, other weights than the fitted ones are refused.
        """
        check_is_fitted(self, "plan_")
        check_model(type(self).__name__, model)
        self.plan_.check(model)
        small = copied(model)
        if any(p.is_meta for p in model.parameters()):
            return remove_(small, self.plan_.removal, self.plan_.resizes)
        found = fingerprints(model, self._seen)
        for name, known in self._seen.items():
            if known != found[name]:
                raise CalibratedWeightError(name)
        apply_(small.get_submodule, self._fits)
        remove_(small, self.plan_.removal, self.plan_.resizes)
        set_norms(small, self._norms)
        return small

    def fit_transform(
        self, model: nn.Module, data: object = None, sample_weight: object = None
    ) -> nn.Module:  # type: ignore[override]
        """`fit`, then `transform` of the same model."""
        return self.fit(model, data, sample_weight).transform(model)

    def _groups(
        self, model: nn.Module, batches: Batches, selection: Selection
    ) -> tuple[Trace, list[ChannelGroup]]:
        """Find the groups, with a reason for those of which nothing goes."""
        found = trace(model, batches, selection)
        reasons = unwanted(model, found.groups, self.layers, self.exclude)
        trial = Trial(model, example(batches), batches.owner)
        groups = excluded(found.groups, reasons)
        return found, verified(trial, model, groups, self.num_heads or {})

    def _chosen(
        self,
        model: nn.Module,
        groups: Sequence[ChannelGroup],
        ranked: Mapping[str, Any],
        sites: Mapping[str, Site],
        batches: Batches,
    ) -> list[tuple[ChannelGroup, tuple[int, ...]]]:
        """Meet the budget."""
        total: float
        if self.cost == "parameters":
            costs, total = parameter_costs(model, groups), count_parameters(model)
        elif self.cost == "flops":
            total, calls = count_calls(model, list(sites.values()), batches)
            flops = {name: sum(call.flops for call in found) for name, found in calls.items()}
            costs = flop_costs(model, groups, flops)
        else:
            costs = channel_costs(model, groups)
            total = sum(cost.whole for cost in costs.values())
        gone = choose(
            groups, ranked, costs, self.ratio, total, self.cost.replace("flops", "FLOPs"),
            min_kept=self.min_kept, round_to=self.round_to,
            uniform=self.allocation == "uniform",
        )  # fmt: skip
        return [(group, gone[group.name]) for group in groups]
