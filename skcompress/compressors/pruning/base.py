"""What all pruners share: fit, plan, write."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import replace
from numbers import Integral, Real
from typing import Any, ClassVar

import torch
from sklearn.base import clone
from sklearn.utils import check_random_state
from sklearn.utils._param_validation import (
    Interval,
    InvalidParameterError,
    RealNotInt,
    StrOptions,
)
from torch import nn

from ... import registry
from ...errors import MissingDataError, NoLayerError
from ...fitting.calibration import Calibration
from ...fitting.comparison import Outcome, closest
from ...fitting.fitted import Fitted
from ...fitting.memo import Recall
from ...fitting.steps import Steps
from ...metrics import count_parameters
from ...network.batches import batches as as_batches
from ...network.batches import device_of
from ...network.weighting import weighted
from ...network.weights import Selection, check_model, check_patterns, require_sites, select
from ...plan import Report
from ...protocols import Criterion, DataCriterion
from ...spaces import FloatRange, SearchSpace
from ..checks import PATTERNS, check_device, computing, seeded
from ..fitted import FittedCompressor
from .fit import Method, PruningFit, zeros
from .gradual import GradualPruning


class PruningCompressor(FittedCompressor):
    """Sets numbers of a model's weights to zero: all but which ones.

    Parameters and learnt attributes are written up in :class:`Pruner`.
    """

    _parameter_constraints: ClassVar[dict[str, Any]] = {
        "sparsity": [Interval(Real, 0, 1, closed="left")],
        "min_kept": [
            Interval(RealNotInt, 0, 1, closed="both"),
            Interval(Integral, 0, None, closed="left"),
            StrOptions({"auto"}),
        ],
        "layers": PATTERNS,
        "exclude": PATTERNS,
        "device": [None, str, torch.device],
        "verbose": ["verbose"],
    }
    search_space: ClassVar[SearchSpace] = {"sparsity": FloatRange(0.3, 0.95)}
    sparsity: float
    min_kept: Any
    layers: Any
    exclude: Any
    device: Any
    verbose: bool | int
    # What pruners that use no data have no parameter for.
    calibration_memory: float = 2**31
    max_positions: int | None = None
    random_state: Any = None
    recalibrate_norm: Any = False
    class_weight: Any = None

    @abstractmethod
    def _method(self) -> Method:
        """Resolve the settings."""

    @computing
    def _fit(self, model: nn.Module, data: object) -> nn.Module | None:
        check_model(type(self).__name__, model)
        steps = Steps(device_of(model))
        with steps("observe"):
            fit = self._prepared_fit(model, data)
        with steps("score"):
            scores = fit.scores()
        if not fit.sites:
            raise NoLayerError(fit.owner, list(fit.reasons.items()))
        with steps("allocate"):
            masks = fit.masks(scores)
        with steps("refit" if fit.method.refit else "update"):
            done = fit.fitted(masks)
        fitted = Fitted(
            fit.plan(done.replacements),
            done.replacements,
            done.offsets,
            patterns=(self.layers, self.exclude),
            inside_factors=True,
            calibrated=fit.calibration is not None,
        )
        outcome = Outcome(fitted)
        if fit.calibration is not None:
            outcome = closest([fitted], fit.calibration, steps, recalibrate=self.recalibrate_norm)
        self._learn(model, outcome, steps)
        return outcome.network

    def _learn(self, model: nn.Module, outcome: Outcome, steps: Steps) -> None:
        """Set what was learnt."""
        self.fitted_, self.plan_ = outcome.fitted, outcome.fitted.plan
        self.kept_ = {row.name: row.nonzeros[1] for row in self.plan_ if row.nonzeros is not None}
        self.n_parameters_in_ = count_parameters(model)
        spared = sum(row.before - row.after for row in self.plan_)
        self.n_parameters_out_ = self.n_parameters_in_ - spared
        counted = zeros(model, self.plan_)
        self.n_nonzeros_in_, self.n_nonzeros_out_ = counted.nonzeros
        self.sparsity_ = counted.zeros[1] / counted.weights
        self.report_ = Report(
            self.plan_,
            self.n_parameters_in_,
            self.n_parameters_out_,
            steps=tuple(steps.done),
            divergence=outcome.divergence,
            measured=outcome.errors,
            zeros=counted,
        )

    def partial(self, model: nn.Module, n_steps: int = 10, optimizer: Any = None) -> GradualPruning:
        """Prune a model step by step while it is trained, in place.

        n_steps : after how many calls of `step` the sparsity is reached
        optimizer : torch.optim.Optimizer of the model, after each step of which zeros are set to
            zero again; None where `hold` is called for that

        What stays is not fitted to data here, as `refit` does: training does that.

        >>> pruner, model = Pruner("magnitude", sparsity=0.9), nn.Linear(8, 8)  # doctest: +SKIP
        >>> schedule = pruner.partial(model, n_steps=5, optimizer=optimizer)    # doctest: +SKIP
        >>> for epoch in range(5):                                              # doctest: +SKIP
        ...     schedule.step()
        ...     train(model, optimizer)
        >>> report = schedule.finalize()                                        # doctest: +SKIP
        """
        owner = type(self).__name__
        if isinstance(n_steps, bool) or not isinstance(n_steps, Integral) or n_steps < 1:
            raise InvalidParameterError(
                f"The 'n_steps' parameter of {owner}.partial must be an int in the range [1, inf). "
                f"Got {n_steps!r} instead."
            )
        check_model(owner, model)
        return GradualPruning(self, model, int(n_steps), optimizer)

    def _selection(self, model: nn.Module) -> Selection:
        """The weights to work on."""
        check_patterns("layers", self.layers, model)
        check_patterns("exclude", self.exclude, model)
        selection = select(model, self.layers, self.exclude, inside_factors=True)
        require_sites(type(self).__name__, selection)
        return selection

    def _prepared_fit(
        self, model: nn.Module, data: object, sparsity: float | None = None
    ) -> PruningFit:
        """Check all settings, and run the first batch of the data where data takes part.

        sparsity : instead of the parameter, and without `refit`: of one step of a schedule
        """
        self._validate_params()
        owner = type(self).__name__
        if isinstance(self.sparsity, bool) or isinstance(self.min_kept, bool):
            raise InvalidParameterError(
                f"The 'sparsity' and 'min_kept' parameters of {owner} must be numbers. Got "
                f"{self.sparsity!r} and {self.min_kept!r} instead."
            )
        check_device(owner, self.device)
        method = self._method()
        if sparsity is not None:
            method = replace(method, sparsity=sparsity, refit=False)
        selection = self._selection(model)
        given = None
        if self._uses_data(method, data):
            batches = as_batches(owner, data, model)
            given = Calibration.observed(
                model,
                selection.sites,
                weighted(batches, self.class_weight),
                Recall(self._shared),
                memory=self.calibration_memory,
                max_positions=self.max_positions,
                random_state=self.random_state,
            )
        return PruningFit(owner, selection, method, given, self.device, self.verbose)

    def _uses_data(self, method: Method, data: object) -> bool:
        """Whether data takes part; refuses settings that need it where there is none."""
        wanted = []
        if method.needs:
            fields = " and ".join(method.needs)
            wanted.append(f"what is asked for ({fields}) by {method.criterion!r}")
        if method.refit:
            wanted.append("refit=True")
        if self.recalibrate_norm is True:
            wanted.append("recalibrate_norm=True")
        if wanted and data is None:
            raise MissingDataError(type(self).__name__, wanted[0])
        return bool(wanted)

    def _resolved_criterion(self, given: Any) -> Criterion | DataCriterion:
        """An instance of its own, seeded where it draws random numbers."""
        criterion = clone(registry.make("criteria", given))
        return seeded(criterion, check_random_state(self.random_state))  # type: ignore[no-any-return]
