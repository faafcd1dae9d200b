"""Laws of criteria of channels."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor

from ..protocols import ChannelCriterion, ChannelReading, Channels, Metric
from .estimators import checked_estimator
from .spaces import corners

FIELDS = ("fisher", "relevance", "moments")


def check_channel_criterion(plugin: ChannelCriterion | type[ChannelCriterion]) -> None:
    """Check a criterion of channels on groups of one unit and of many, of layers of all kinds.

    Laws: scores are one finite number for each unit, repeat, and leave all that they are made of
    untouched; or there are none, where there is nothing to go by, whatever the values are. What a
    criterion asks for by `needs` is there, and nothing else; inputs that are all zero, or fewer
    than a weight has columns, are among it. All this holds for whatever its `search_space`
    declares.
    """
    criterion = checked_estimator(plugin, ChannelCriterion)
    name = type(criterion).__name__
    unknown = set(criterion.needs) - set(FIELDS)
    assert not unknown, f"{name}: needs {sorted(unknown)}, which nobody gathers"
    scored = 0
    for case, channels in groups_of_channels(criterion.needs):
        scored += _check_on(f"{name} on {case}", criterion, channels)
        for where, variant, _ in corners(criterion):
            _check_on(f"{where} on {case}", variant, channels)
    assert scored, f"{name}: nothing is ever enough to go by"


def _check_on(where: str, criterion: ChannelCriterion, channels: Channels) -> bool:
    before = [x.clone() for x in _tensors(channels)]
    scores, again = criterion.scores(channels), criterion.scores(channels)
    for x, kept in zip(_tensors(channels), before, strict=True):
        assert torch.equal(x, kept), f"{where}: what is known of the channels was changed"
    if scores is None or again is None:
        assert scores is again, f"{where}: has something to go by once, and not again"
        return False
    assert scores.shape == (channels.n_units,), f"{where}: scores {tuple(scores.shape)}"
    assert torch.isfinite(scores).all(), f"{where}: scores not finite"
    assert torch.equal(scores, again), f"{where}: does not repeat"
    return True


def _tensors(channels: Channels) -> list[Tensor]:
    known = [*channels.given, *channels.read, *channels.scales]
    known += [x for x in (channels.fisher, channels.relevance) if x is not None]
    for reading in channels.readings:
        known += [reading.weight, reading.metric.inputs.dense, *reading.columns]
    return known


def groups_of_channels(needs: Sequence[str]) -> Iterator[tuple[str, Channels]]:
    """Yield what could be known of groups of channels, and what to call it."""
    for n_units, width in ((1, 1), (2, 3), (12, 1)):
        for case in ("plain", "normalised", "all zero", "partly given"):
            yield f"{n_units} units of {width}, {case}", _group(n_units, width, case, needs)


def _group(n_units: int, width: int, case: str, needs: Sequence[str]) -> Channels:
    generator = torch.Generator().manual_seed(n_units)

    def drawn(*shape: int, dtype: torch.dtype = torch.float32) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=dtype) * (case != "all zero")

    given, out, n = drawn(n_units, width * 9), 5, n_units * width
    if case == "partly given":
        given[n_units // 2 :] = 0
    weight = drawn(out, n)
    read = weight.mT.reshape(n_units, -1)
    scales = (drawn(n_units, width),) if case == "normalised" else ()
    found: dict[str, Tensor] = {
        what: drawn(n_units, dtype=torch.float64) for what in needs if what != "moments"
    }
    if "fisher" in found:
        found["fisher"] = found["fisher"].square()
    readings: tuple[ChannelReading, ...] = ()
    if "moments" in needs:
        x = drawn(max(1, n // 2) if case == "plain" else 4 * n, n, dtype=torch.float64)
        metric = Metric.of_inputs(weight, x.mT @ x / len(x)).with_ridge(weight)
        columns = tuple(torch.arange(n).reshape(n_units, width))
        readings = (ChannelReading(weight, metric, columns),)
    return Channels(case, n_units, (given,), (read,), scales, **found, readings=readings)
