"""Outcomes of a fit compared by what they do to the outputs of the network."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

from torch import nn

from ..network.batches import Batches, n_samples
from ..network.observing import observe
from ..statistics.divergence import Divergence
from ..statistics.layer_errors import LayerErrors
from ..statistics.norms import estimated, own_statistics
from .calibration import Calibration
from .fitted import Fitted, NormStatistics, set_norms
from .steps import Steps

# From fewer samples, as people give them for their shape, nothing is estimated unasked.
ENOUGH = 64


@dataclass(frozen=True)
class Outcome:
    """A fit, and how close it comes to the original on the data.

    network : the compressed network, where it was built
    divergence : of its outputs; None where they were not compared, or cannot be
    errors : of the outputs of layers, relative, by the name of the weight
    """

    fitted: Fitted
    network: nn.Module | None = None
    divergence: float | None = None
    errors: Mapping[str, float] = field(default_factory=dict)

    def closer_than(self, other: Outcome) -> bool:
        """Whether it is known to come closer than another one."""
        if self.divergence is None:
            return False
        return other.divergence is None or self.divergence < other.divergence


def closest(
    fits: Iterable[Fitted],
    calibration: Calibration,
    steps: Steps,
    *,
    recalibrate: bool | str = False,
    needed: bool = False,
    measure: bool = True,
) -> Outcome:
    """Give the fit whose outputs on the data are closest to the original's; of equals the first.

    recalibrate : whether batch normalisations get statistics of their inputs in the compressed
        network; "auto": where there are `ENOUGH` samples, and its outputs come closer by it
    needed : whether outputs that cannot be compared, such as lists of found objects, are an
        error. Otherwise the first fit stays, and nothing is said of its divergence.
    measure : whether outputs are compared where no choice depends on it
    """
    best: Outcome | None = None
    if not own_statistics(calibration.model):
        recalibrate = False
    if recalibrate == "auto" and not _enough(calibration.batches):
        recalibrate = False
    compares = measure or needed or recalibrate == "auto"
    for fitted in fits:
        outcome = Outcome(fitted)
        if compares or recalibrate:
            with steps("compare"):
                outcome = Outcome(fitted, fitted.edited(calibration.model))
                if compares:
                    outcome = _compared(outcome, calibration, needed)
        if best is None or outcome.closer_than(best):
            best = outcome
    assert best is not None
    if recalibrate is True or (recalibrate and best.divergence is not None):
        best = _recalibrated(best, calibration, steps, recalibrate is True, compares)
    return best if measure else replace(best, divergence=None, errors={})


def _enough(data: Batches) -> bool:
    n = 0
    return any((n := n + n_samples(batch)) >= ENOUGH for batch in data)


def _compared(outcome: Outcome, calibration: Calibration, needed: bool) -> Outcome:
    """Run both networks side by side."""
    assert outcome.network is not None
    readers = {n: module for n, module in calibration.readers.items() if outcome.fitted.compares(n)}
    divergence, errors = Divergence(needed=needed), LayerErrors(readers.values())
    networks = [calibration.model, outcome.network]
    observe(networks, calibration.batches, divergence, errors, title="compare")
    by_weight = {n: errors.values[m] for n, m in readers.items() if m in errors.values}
    return replace(outcome, divergence=divergence.value, errors=by_weight)


def _recalibrated(
    outcome: Outcome, calibration: Calibration, steps: Steps, always: bool, compares: bool
) -> Outcome:
    """Give the outcome with other statistics of its batch normalisations, or as it is."""
    assert outcome.network is not None
    network = outcome.network
    with steps("recalibrate"):
        norms = estimated(network, calibration.batches)
    if not norms:
        return outcome
    before = _statistics_of(network, norms)
    set_norms(network, norms)
    other = replace(outcome, fitted=replace(outcome.fitted, norms=norms))
    if compares:
        with steps("compare"):
            other = _compared(other, calibration, needed=False)
    if always or other.closer_than(outcome):
        return other
    set_norms(network, before)
    return outcome


def _statistics_of(model: nn.Module, names: Iterable[str]) -> NormStatistics:
    found = own_statistics(model)
    return {
        name: (found[name].running_mean.clone(), found[name].running_var.clone())  # type: ignore[union-attr]
        for name in names
    }
