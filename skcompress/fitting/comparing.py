"""Outcomes of a fit compared by what they do to the outputs of the network."""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from typing import Generic, Protocol, TypeVar

from torch import Tensor, nn

from ..errors import OutputShapeError, OutputTypeError
from ..network.weights import Selection
from ..plan import Plan
from ..statistics.divergence import Reference
from ..statistics.layer_errors import output_errors
from ..statistics.norms import estimated, own_statistics
from .calibrated import Calibration
from .steps import Steps

NormStatistics = dict[str, tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Result:
    """A plan, and what comes of it.

    norms : mean and variance of batch normalisations, where they are to be others
    """

    plan: Plan
    norms: NormStatistics = field(default_factory=dict, kw_only=True)


R = TypeVar("R", bound=Result)
R_contra = TypeVar("R_contra", bound=Result, contravariant=True)


class Fit(Protocol[R_contra]):
    """What the results that are compared have in common."""

    @property
    def model(self) -> nn.Module:
        """The original."""

    @property
    def selection(self) -> Selection:
        """Its weights."""

    @property
    def calibration(self) -> Calibration | None:
        """The data."""

    def compressed(self, outcome: R_contra) -> nn.Module:
        """Build the compressed model."""


class Comparison(Generic[R]):
    """Keeps the outcome whose outputs on the data are closest to those of the original.

    recalibrate : whether batch normalisations get statistics of their inputs in the compressed
        network; "auto": where its outputs are closer with them
    needed : whether outputs that cannot be compared, such as lists of found objects, are an
        error. Otherwise the first outcome stays, and nothing is said of its divergence.
    measure : whether outputs are compared where no choice depends on it
    """

    def __init__(
        self,
        fitting: Fit[R],
        recalibrate: bool | str,
        steps: Steps,
        *,
        needed: bool = False,
        measure: bool = True,
    ):
        assert fitting.calibration is not None
        self._fitting, self._steps = fitting, steps
        self._recalibrate = recalibrate if own_statistics(fitting.model) else False
        self._given, self._needed, self._measure = fitting.calibration, needed, measure
        self._reference: Reference | None = None
        self._best: tuple[float | None, R] | None = None
        if not (measure or needed or self._recalibrate == "auto"):
            return
        try:
            with steps("compare"):
                memory, known = self._given.memory, self._given.known
                self._reference = known.shared.get(
                    known.key("reference", memory),
                    lambda: Reference(fitting.model, self._given.batches, memory=memory),
                )
        except OutputTypeError:
            if needed:
                raise

    def add(self, outcome: R) -> None:
        """Compare one more outcome; of equals the first stays."""
        divergence = self._divergence(outcome)
        if self._best is None or (
            divergence is not None and (self._best[0] is None or divergence < self._best[0])
        ):
            self._best = divergence, outcome

    def _divergence(self, outcome: R) -> float | None:
        if self._reference is None:
            return None
        try:
            with self._steps("compare"):
                return self._reference.divergence(self._fitting.compressed(outcome))
        except OutputShapeError:
            if self._needed:
                raise
            return None

    def best(self) -> tuple[R, float | None, dict[str, float]]:
        """Give the best outcome, its divergence, and the relative error of each layer's outputs."""
        assert self._best is not None
        if self._recalibrate is True or (self._recalibrate and self._best[0] is not None):
            outcome = self._best[1]
            with self._steps("recalibrate"):
                norms = estimated(self._fitting.compressed(outcome), self._given.batches)
            if norms:
                if self._recalibrate is True:
                    self._best = None
                self.add(replace(outcome, norms=norms))
        assert self._best is not None
        divergence, outcome = self._best
        if not self._measure:
            return outcome, divergence, {}
        with self._steps("compare"):
            return outcome, divergence, self._errors(outcome)

    def _errors(self, outcome: R) -> dict[str, float]:
        """Relative errors by the name of the site, for those that are compressed."""
        fitting = self._fitting
        reader = {}
        for site in fitting.selection.sites:
            if outcome.plan[site.name].reason is None:
                # What a layer loses of its mean is made up for after the normalisation only.
                norm = self._given.norm_after(site)
                reader[site.name] = site.users[0][0] if norm is None else norm.name
        found = output_errors(
            fitting.model, fitting.compressed(outcome), reader.values(), self._given.batches
        )
        return {site: found[module] for site, module in reader.items() if module in found}
