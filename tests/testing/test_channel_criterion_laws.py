"""Criteria of channels that break a law are found out."""

from __future__ import annotations

import pytest
import torch

from skcompress.protocols import ChannelCriterion
from skcompress.testing import check_channel_criterion


class Sizes(ChannelCriterion):
    def scores(self, channels):
        return channels.given[0].abs().sum(1)


class OfChannels(Sizes):
    def scores(self, channels):
        return channels.given[0].abs()[:, 0].repeat(2)


class OfNothing(Sizes):
    def scores(self, channels):
        return super().scores(channels) / super().scores(channels)


class InPlace(Sizes):
    def scores(self, channels):
        return channels.given[0].abs_().sum(1)


class Fresh(Sizes):
    n_calls = 0

    def scores(self, channels):
        Fresh.n_calls += 1
        return super().scores(channels) + Fresh.n_calls


class Silent(Sizes):
    def scores(self, channels):
        return None


class Curious(Sizes):
    needs = ("hessian",)


class Reader(Sizes):
    needs = ("fisher", "relevance", "moments")

    def scores(self, channels):
        lost = torch.zeros(channels.n_units, dtype=torch.float64)
        for reading in channels.readings:
            power = reading.metric.inputs.diagonal
            energies = reading.metric.seen(reading.weight.to(power)).square().sum(0) * power
            lost += torch.stack([energies[columns].sum() for columns in reading.columns])
        return lost + channels.fisher + channels.relevance.abs()


@pytest.mark.parametrize("criterion", [Sizes, Reader])
def test_what_keeps_the_laws_passes(criterion):
    check_channel_criterion(criterion)


@pytest.mark.parametrize(
    ("criterion", "law"),
    [
        (OfChannels, "scores "),
        (OfNothing, "not finite"),
        (InPlace, "was changed"),
        (Fresh, "does not repeat"),
        (Silent, "nothing is ever enough"),
        (Curious, "'hessian'"),
    ],
)
def test_what_breaks_one_is_named(criterion, law):
    with pytest.raises(AssertionError, match=rf"{criterion.__name__}.*{law}"):
        check_channel_criterion(criterion)
