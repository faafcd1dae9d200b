"""`sensitivity`: errors of a layer count by how much the network's outputs react to it."""

from __future__ import annotations

import pytest
import torch
from models import seeded
from torch import nn

from skcompress import SVDCompressor, count_parameters
from skcompress.decompositions.svd import SVD
from skcompress.fitting.calibration import Calibration
from skcompress.fitting.candidates import of_inputs
from skcompress.fitting.importance import POWERS, TRIED_ON
from skcompress.fitting.memo import Recall
from skcompress.network.batches import batches
from skcompress.network.weights import select

POWERS_BY_HAND = (0.0, 0.25, 0.5, 1.0)


class Branches(nn.Module):
    """Two equal layers; the second hardly reaches the output."""

    def __init__(self):
        super().__init__()
        self.loud, self.quiet = nn.Linear(32, 32), nn.Linear(32, 32)
        self.head = nn.Linear(32, 8)
        self.quiet.load_state_dict(self.loud.state_dict())

    def forward(self, x):
        return self.head(3 * self.loud(x).tanh() + 0.1 * self.quiet(x).tanh())


def sample(n=300):
    return seeded(lambda: torch.randn(n, 32) * torch.linspace(1, 0.1, 32))


@pytest.mark.parametrize("reconstruction", ["independent", "sequential"])
def test_rank_goes_where_it_matters(reconstruction):
    model, x = seeded(Branches), sample()
    ranks = []
    for power in (0, 0.25, 0.5, 1.0):
        compressor = SVDCompressor(
            0.5, sensitivity=power, reconstruction=reconstruction, exclude="head"
        ).fit(model, x)
        ranks.append((compressor.ranks_.get("loud", 32), compressor.ranks_["quiet"]))
        assert compressor.n_parameters_out_ <= 0.5 * count_parameters(model)
    assert abs(ranks[0][0] - ranks[0][1]) <= 1  # the last of the budget goes to one of them
    assert ranks[0][0] < ranks[1][0] <= ranks[2][0] <= ranks[3][0]
    assert ranks[0][1] > ranks[1][1] >= ranks[2][1] >= ranks[3][1]


def test_it_is_the_effect_of_the_layer():
    # 3 tanh(W x) against 0.1 tanh(W x): gradients of 30 times the size, energies of 900 times.
    model, x = seeded(Branches), sample()
    sites = select(model).sites
    data = batches("Test", x, model)
    limits = {"memory": 2**30, "max_positions": None, "random_state": 0}
    given = Calibration.observed(model, sites, data, Recall(), **limits).with_gradients(
        False, False
    )
    found = of_inputs(sites, lambda site: [SVD()], given, None, (), False)
    known = {name: findings.energy for name, findings in found.items()}
    assert known["loud"] / known["quiet"] == pytest.approx(900, rel=1e-3)


@pytest.mark.parametrize("reconstruction", ["independent", "sequential"])
def test_the_fisher_metric_counts_outputs_by_their_effect(reconstruction):
    class Heard(nn.Module):
        """Of eight outputs of the layer, the network hears two, in half of their combinations."""

        def __init__(self):
            super().__init__()
            self.layer, self.head = nn.Linear(32, 32), nn.Linear(4, 8, bias=False)

        def forward(self, x):
            h = self.layer(x)
            return self.head(h[:, :8].unflatten(1, (4, 2)).sum(2))

    model, x = seeded(Heard).eval(), sample()
    settings = {"allocation": "uniform", "exclude": "head", "reconstruction": reconstruction}
    losses = {
        metric: SVDCompressor(4, metric=metric, **settings).fit(model, x).report_.divergence
        for metric in ("activations", "fisher")
    }
    assert losses["fisher"] < 1e-3 * losses["activations"]


@pytest.mark.parametrize("reconstruction", ["independent", "sequential"])
def test_auto_keeps_the_power_of_least_divergence(reconstruction):
    assert POWERS == POWERS_BY_HAND
    chosen = set()
    for build, keep in ((Branches, 0.5), (Branches, 0.3), (convolutional, 0.4)):
        model = seeded(build).eval()
        x = sample() if build is Branches else seeded(lambda: torch.rand(80, 3, 8, 8))
        settings = {"reconstruction": reconstruction}
        by_hand = [SVDCompressor(keep, sensitivity=p, **settings).fit(model, x) for p in POWERS]
        found = [compressor.report_.divergence for compressor in by_hand]
        best = by_hand[found.index(min(found))]
        auto = SVDCompressor(keep, sensitivity="auto", **settings)
        small = auto.fit_transform(model, x)
        assert auto.report_.divergence == min(found) < max(found)
        assert auto.plan_ == best.plan_
        expected = best.transform(model).state_dict()
        assert all(torch.equal(v, expected[k]) for k, v in small.state_dict().items())
        chosen.add(best.sensitivity)
    assert chosen != {0.0}


def convolutional():
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 24, 3, padding=1), nn.ReLU(), nn.AdaptiveAvgPool2d(2), nn.Flatten(),
        nn.Linear(96, 40), nn.ReLU(), nn.Linear(40, 10),
    )  # fmt: skip


@pytest.mark.parametrize("sensitivity", [0.5, "auto"])
@pytest.mark.parametrize(
    ("allocation", "rank"), [("uniform", 0.5), ("energy", 0.9), ("auto", 0.5), ("global", 4)]
)
def test_allocations_that_do_not_weigh_are_not_harmed(allocation, rank, sensitivity):
    model, x = seeded(Branches), sample()
    plain = SVDCompressor(rank, allocation=allocation).fit(model, x)
    weighed = SVDCompressor(rank, allocation=allocation, sensitivity=sensitivity).fit(model, x)
    assert weighed.plan_ == plain.plan_
    assert weighed.report_.divergence == plain.report_.divergence


def test_a_layer_without_effect_does_not_break_it():
    model, x = seeded(Branches), sample()
    with torch.no_grad():
        model.head.weight.zero_()  # nothing reaches the output
    for sensitivity in (1.0, "auto"):
        compressor = SVDCompressor(0.5, sensitivity=sensitivity).fit(model, x)
        assert compressor.n_parameters_out_ <= 0.5 * count_parameters(model)


@pytest.mark.parametrize("form", ["tensor", "batches"])
def test_a_part_of_many_samples_decides_and_all_of_them_serve(form):
    model, batches = seeded(Branches).eval(), list(sample(4 * TRIED_ON).split(64))
    batches[::4] = [30 * batch for batch in batches[::4]]
    x, part = torch.cat(batches), torch.cat(batches[::4])
    tried = [SVDCompressor(0.5, sensitivity=p).fit(model, x) for p in POWERS]
    # What each power makes of a part of the samples, with the ranks that all of them gave it.
    on_part = [SVDCompressor(c.ranks_, allocation="uniform").fit(model, part) for c in tried]
    losses, losses_on_part = (
        [compressor.report_.divergence for compressor in found] for found in (tried, on_part)
    )
    best = losses_on_part.index(min(losses_on_part))
    assert losses[best] > min(losses)
    auto = SVDCompressor(0.5, sensitivity="auto").fit(model, x if form == "tensor" else batches)
    assert auto.plan_ == tried[best].plan_
    assert auto.report_.divergence == losses[best]


def test_a_stream_of_unknown_length_is_used_whole():
    class Stream:
        def __init__(self, x):
            self.x = x

        def __iter__(self):
            return iter(self.x.split(64))

    model, x = seeded(Branches).eval(), sample(4 * TRIED_ON)
    tried = [SVDCompressor(0.3, sensitivity=p).fit(model, x) for p in POWERS]
    auto = SVDCompressor(0.3, sensitivity="auto").fit(model, Stream(x))
    assert auto.report_.divergence == min(c.report_.divergence for c in tried)
