"""Whole channels, removed for good."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

from sklearn.utils._param_validation import InvalidParameterError
from sklearn.utils.validation import check_is_fitted
from torch import nn

from skcompress import registry
from skcompress.building import (
    Batches,
    Calibration,
    Outcome,
    Recall,
    Reconstruction,
    Selection,
    Site,
    Steps,
    batches,
    check_model,
    check_patterns,
    closest,
    computing,
    device_of,
    fingerprint,
    reconstruct,
    select,
    weighted,
    working_weight,
)
from skcompress.errors import NoLayerError
from skcompress.metrics import count_parameters

from .budget import channel_costs, choose, flop_costs, parameter_costs
from .errors import NoInputsError
from .fitted import FittedChannels, SameWeight
from .groups import ChannelGroup, Removal, removal
from .plan import ChannelReport
from .planning import excluded, make_plan, unwanted
from .refitting import ChannelRefit
from .removing import mixes
from .scoring import Scoring, resolved
from .settings import ChannelSettings
from .tracing import Trace, example, trace
from .values import check_values
from .verifying import Trial, resizes, verified


class ChannelPruner(ChannelSettings):
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
    criterion : str, ChannelCriterion or torch-pruning importance, default="merge"
        What a channel is worth: a registered name, or an instance.

        - ``"l1"``, ``"l2"``: sums of absolute or squared weights over all layers that give or read
          it, relative to the mean of its group (on weights as they are, normalisations not folded
          in);
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
        them. "auto": "all" with ``criterion="merge"`` and others that say so, otherwise none.
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
    fitted_ : everything that was learnt, which `transform` applies
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
        self._fit(model, data, sample_weight)
        return self

    def fit_transform(
        self, model: nn.Module, data: object = None, sample_weight: object = None
    ) -> nn.Module:  # type: ignore[override]
        """`fit`, then `transform` of the same model; the network that was compared is given."""
        return self._fit(model, data, sample_weight)

    @computing
    def transform(self, model: nn.Module) -> nn.Module:
        """Give a copy of `model` without the planned channels.

        model : the fitted model or another one of the same architecture (a later checkpoint; a
            model on the meta device). Where layers were fitted or normalisations recalibrated with
            the data, other weights than the fitted ones are refused.
        """
        check_is_fitted(self, "fitted_")
        return self.fitted_.applied_to(model, type(self).__name__)

    @computing
    def _fit(self, model: nn.Module, data: object, sample_weight: object) -> nn.Module:
        """Learn all there is; gives the smaller network."""
        batches = self._checked(model, data)
        steps, selection = Steps(device_of(model)), select(model)
        sites = {s.users[0][0]: s for s in selection.sites if s.alone and mixes(s.modules[0])}
        with steps("observe"):
            given = Calibration.observed(
                model, list(sites.values()),
                weighted(batches, self.class_weight, sample_weight), Recall(self._shared),
                memory=self.calibration_memory, max_positions=self.max_positions,
                random_state=self.random_state,
            )  # fmt: skip
        with steps("trace"):
            found, groups = self._groups(model, batches, selection)
        criterion = resolved(self.criterion, given.seed)
        with steps("score"):
            open_ = [group for group in groups if group.reason is None]
            scoring = Scoring(criterion, found, given, sites, self.verbose)
            ranked, reasons = scoring.rankings(open_)
        groups = excluded(groups, reasons)
        open_ = [group for group in groups if group.reason is None]
        if not open_:
            raise NoLayerError(batches.owner, [(g.name, g.reason or "") for g in groups])
        chosen = self._chosen(open_, ranked, given)
        gone, resized = removal(chosen), resizes(chosen)
        wanted = "all" if getattr(criterion, "wants_refit", False) else False
        refit = wanted if self.refit == "auto" else self.refit
        done = Reconstruction()
        if refit:
            with steps("refit"):
                done = self._refitted(given, sites, gone, everything=refit == "all")
        kept = {
            site.name: SameWeight(fingerprint(site.name, working_weight(site, None)))
            for name, site in sites.items()
            if name in gone
        }
        plan = make_plan(
            model, groups, {group.name: units for group, units in chosen}, gone, resized
        )
        fitted = FittedChannels(
            plan, {**kept, **done.replacements}, done.offsets, calibrated=bool(refit)
        )
        outcome = closest([fitted], given, steps, recalibrate=self.recalibrate_norm)
        return self._learn(outcome, given, steps)

    def _checked(self, model: nn.Module, data: object) -> Batches:
        """Refuse whatever can be refused before any work."""
        self._validate_params()
        owner = type(self).__name__
        if isinstance(self.ratio, bool):
            rule = "a float in the range [0.0, 1.0)"
            raise InvalidParameterError(
                f"The 'ratio' parameter of {owner} must be {rule}. Got {self.ratio!r} instead."
            )
        resolved(self.criterion, 0)
        check_model(owner, model)
        if data is None:
            raise NoInputsError(owner)
        check_patterns("layers", self.layers, model)
        check_patterns("exclude", self.exclude, model)
        check_values(model)
        return batches(owner, data, model)

    def _groups(
        self, model: nn.Module, batches: Batches, selection: Selection
    ) -> tuple[Trace, list[ChannelGroup]]:
        """Find the groups, with a reason for those of which nothing goes."""
        found = trace(model, batches, selection)
        reasons = unwanted(model, found.groups, self.layers, self.exclude)
        trial = Trial(model, example(batches))
        groups = excluded(found.groups, reasons)
        return found, verified(trial, model, groups, self.num_heads or {})

    def _chosen(
        self,
        groups: Sequence[ChannelGroup],
        ranked: Mapping[str, Any],
        given: Calibration,
    ) -> list[tuple[ChannelGroup, tuple[int, ...]]]:
        """Meet the budget."""
        model, total = given.model, 0.0
        if self.cost == "parameters":
            costs, total = parameter_costs(model, groups), count_parameters(model)
        elif self.cost == "flops":
            costs, total = flop_costs(model, groups, next(iter(given.batches)))
        else:
            costs = channel_costs(model, groups)
            total = sum(cost.whole for cost in costs.values())
        gone = choose(
            groups, ranked, costs, self.ratio, total, self.cost.replace("flops", "FLOPs"),
            min_kept=self.min_kept, round_to=self.round_to,
            uniform=self.allocation == "uniform",
        )  # fmt: skip
        return [(group, gone[group.name]) for group in groups]

    def _refitted(
        self, given: Calibration, sites: Mapping[str, Site], gone: Removal, *, everything: bool
    ) -> Reconstruction:
        """Fit the layers that lose inputs, or all that mix channels."""
        refit = ChannelRefit(gone)
        readers = [
            site for name, site in sites.items() if everything or gone.get(name, ([], []))[1]
        ]
        return reconstruct(
            given, readers, refit.of_weight, refit.of_inputs, device=None, verbose=self.verbose
        )

    def _learn(self, outcome: Outcome, given: Calibration, steps: Steps) -> nn.Module:
        """Set what was learnt; gives the smaller network."""
        small, fitted = outcome.network, outcome.fitted
        assert small is not None
        # Statistics of the data make the result one for these weights.
        self.fitted_ = replace(fitted, calibrated=fitted.calibrated or bool(fitted.norms))
        self.plan_ = self.fitted_.plan
        self.n_parameters_in_, self.n_parameters_out_ = map(count_parameters, (given.model, small))
        flops = registry.make("costs", "flops")
        self.n_flops_in_, self.n_flops_out_ = (
            int(given.cost_of(flops, network)) for network in (given.model, small)
        )
        self.report_ = ChannelReport(
            self.plan_, self.n_parameters_in_, self.n_parameters_out_,
            (self.n_flops_in_, self.n_flops_out_), outcome.divergence, tuple(steps.done),
        )  # fmt: skip
        return small
