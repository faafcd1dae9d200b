"""Numbers of values that stay in each weight, against their definitions and brute force."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest
import torch
from models import random

from skcompress.allocations.erk import ERK
from skcompress.allocations.global_budget import GlobalBudget
from skcompress.allocations.rate_distortion import RateDistortion, least_loss
from skcompress.allocations.relative import RelativeScores
from skcompress.allocations.sap import SAP, pq_index
from skcompress.allocations.uniform import Uniform
from skcompress.errors import AllocationValueError
from skcompress.protocols import Prunable


def prunable(values, least=0, distortion=None):
    return Prunable("w", tuple(values.shape), least, values.abs, values.clone, distortion)


def test_global_takes_the_largest_scores_once_every_weight_has_its_least():
    small, middle, large = (
        scale * random(1, 10, 20, seed=seed) for seed, scale in enumerate((0.01, 1.0, 1.5))
    )
    assert GlobalBudget().divide([prunable(v) for v in (small, middle, large)], 190)[0] == 0
    counts = GlobalBudget().divide([prunable(v, 30) for v in (small, middle, large)], 190)
    assert counts[0] == 30
    threshold = torch.cat([middle.abs().flatten(), large.abs().flatten()]).sort().values[-160]
    assert counts[1:] == [int((v.abs() >= threshold).sum()) for v in (middle, large)]


def test_relative_divides_by_what_is_not_smaller_in_the_same_weight():
    parts = [scale * random(1, 10, 20, seed=seed) for seed, scale in enumerate((0.01, 1.0, 30.0))]
    shares = []
    for part in parts:
        ordered = part.abs().flatten().sort().values
        shares.append(ordered / ordered.flip(0).cumsum(0).flip(0))
    threshold = torch.cat(shares).sort().values[-90]
    counts = RelativeScores().divide([prunable(v) for v in parts], 90)
    assert counts == [int((share >= threshold).sum()) for share in shares]
    assert RelativeScores().divide([prunable(v, 70) for v in parts], 230)[0] >= 70


def test_uniform_and_erk_are_in_proportion_to_sizes_and_to_sums_of_axes():
    weights = [prunable(random(1, 64, 32, 3, 3)), prunable(random(2, 16, 16)),
               prunable(random(1, 40, 100))]  # fmt: skip
    sizes = np.array([w.size for w in weights])
    counts = np.array(Uniform().divide(weights, 5000))
    assert np.abs(counts - 5000 * sizes / sizes.sum()).max() < 1
    sums = np.array([64 + 32 + 6, 2 * 32, 140])
    counts = np.array(ERK().divide(weights, 600))
    assert np.abs(counts - 600 * sums / sums.sum()).max() < 1
    # What a weight cannot hold goes to the others.
    assert ERK().divide(weights, int(sizes.sum()) - 10)[1:] == [512, 4000]


@pytest.mark.parametrize(("p", "q"), [(0.5, 1.0), (1.0, 2.0)])
def test_pq_index(p, q):
    values = random(30)
    sizes = values.abs().numpy()
    norms = [float((sizes**power).sum() ** (1 / power)) for power in (p, q)]
    expected = 1 - 30 ** (1 / q - 1 / p) * norms[0] / norms[1]
    assert pq_index(values, p, q) == pytest.approx(expected)
    assert pq_index(1e-20 * values.float(), p, q) == pytest.approx(expected, rel=1e-4)
    assert pq_index(torch.ones(9), p, q) == pytest.approx(0.0)
    one = torch.zeros(9)
    one[4] = 2.0
    assert pq_index(one, p, q) == pytest.approx(1 - 9 ** (1 / q - 1 / p))


def test_sap_keeps_more_of_weights_whose_values_are_alike():
    even, uneven = torch.ones(1, 20, 20), random(1, 20, 20).pow(5).float()
    counts = SAP().divide([prunable(even), prunable(uneven)], 300)
    index = pq_index(uneven, 0.5, 1.0)
    assert counts[1] / counts[0] == pytest.approx(1 - index, abs=0.01)
    with pytest.raises(AllocationValueError, match="p and q of SAP must be 0 < p < q"):
        SAP(p=2.0).divide([prunable(even)], 10)


def test_dynamic_programming_finds_the_least_loss():
    for seed in range(5):
        rng = np.random.default_rng(seed)
        levels = [np.sort(rng.choice(60, size=5, replace=False)) for _ in range(4)]
        losses = [np.sort(rng.exponential(size=5))[::-1] for _ in range(4)]
        budget = sum(int(level[0]) for level in levels) + 70
        chosen = least_loss(levels, losses, budget)
        assert sum(level[i] for level, i in zip(levels, chosen, strict=True)) <= budget
        found = sum(loss[i] for loss, i in zip(losses, chosen, strict=True))
        best = min(
            sum(loss[i] for loss, i in zip(losses, choice, strict=True))
            for choice in product(range(5), repeat=4)
            if sum(level[i] for level, i in zip(levels, choice, strict=True)) <= budget
        )
        assert found == pytest.approx(best)


def test_rate_distortion_keeps_what_the_outputs_react_to():
    values = [random(1, 20, 30, seed=seed) for seed in (1, 2)]

    def losses(scale, one):
        ordered = one.flatten().square().sort(descending=True).values
        return lambda counts: [scale * float(ordered[count:].sum()) for count in counts]

    def divided(scale):
        parts = [prunable(v, 5, losses(s, v)) for v, s in zip(values, (scale, 1.0), strict=True)]
        return RateDistortion().divide(parts, 400)

    assert abs(divided(1.0)[0] - 200) < 30
    assert divided(30.0)[0] > 300
    assert divided(1 / 30)[0] < 100
    assert sum(divided(7.0)) == 400
