"""The two steps whose turns find L + S, against references that try everything."""

from __future__ import annotations

from itertools import combinations

import pytest
import torch
from models import distance, random

from skcompress.decompositions.alternating import (
    Closest,
    Outputs,
    refitted_values,
    take_turns,
)
from skcompress.protocols import Dense, Metric
from skcompress.supported import supported_least_squares


def metric_of(weight, seed=7, output=None):
    n = weight[0].numel()
    mixing = random(n, n, seed=seed) * torch.logspace(0, -1, n, dtype=torch.float64)
    return Metric.of_inputs(weight, mixing @ mixing.mT, output).with_ridge(weight)


def goal_of(weight, metric=None):
    if metric is None:
        return Closest(weight)
    return Outputs(metric, metric.inputs.solve(metric.cross), torch.float64)


def lost(weight, metric=None):
    """Squared norm of (out, n) in a metric."""
    if metric is None:
        return float(weight.square().sum())
    seen = metric.seen(weight)
    return float((seen @ metric.gram * seen).sum())


def turns_of(goal, rank, n_kept, n_iter):
    (found,) = take_turns(goal, [rank], n_kept, n_iter)
    return found


def lost_at(goal, weight, sparse, rank, metric=None):
    seen = goal.seen(weight - sparse)
    return float(torch.linalg.svdvals(seen)[rank:].square().sum())


ROOTS = {
    "alike": None,
    "by channel": torch.linspace(1, 4, 6, dtype=torch.float64),
    "mixed": random(6, 6, seed=3),
}


@pytest.mark.parametrize("root", ROOTS.values(), ids=ROOTS)
@pytest.mark.parametrize("n", [4, 6, 11])
def test_projection_is_the_best_of_its_rank_in_the_metric(n, root):
    weight = random(6, n)
    metric = metric_of(weight, output=root)
    goal = goal_of(weight, metric)
    seen = goal.seen(weight)
    left, values, right = torch.linalg.svd(seen, full_matrices=False)
    basis = left[:, :3] if n >= 6 else right[:3].mT
    low = goal.projected(weight, seen, basis)
    assert torch.linalg.matrix_rank(low, rtol=1e-9) == 3
    expected = float(values[3:].square().sum())
    assert lost(weight - low, metric) == pytest.approx(expected, rel=1e-9)


def test_thresholding_is_the_best_of_all_supports_in_the_frobenius_norm():
    rest = random(3, 4)
    found = Closest(rest).sparse(rest, 4)
    best = min(
        float(rest.square().sum() - rest.flatten()[list(s)].square().sum())
        for s in combinations(range(12), 4)
    )
    assert lost(rest - found) == pytest.approx(best)
    assert torch.count_nonzero(found) == 4


@pytest.mark.parametrize("root", [ROOTS["alike"], ROOTS["by channel"]])
def test_positions_with_independent_inputs_are_the_best_of_all(root):
    weight = random(6, 2)
    gram = torch.diag(torch.tensor([1.0, 25.0], dtype=torch.float64))
    metric = Metric.of_inputs(weight, gram, root)
    found = goal_of(weight, metric).sparse(weight, 3)
    best = min(
        lost(weight * ~torch.isin(torch.arange(12), torch.tensor(s)).reshape(6, 2), metric)
        for s in combinations(range(12), 3)
    )
    assert lost(weight - found, metric) == pytest.approx(best)


def test_refitted_values_come_close_to_least_squares():
    rest = random(20, 30)
    gram = metric_of(rest).gram
    kept = random(20, 30, seed=4) > 0.8
    found = refitted_values(gram, rest, kept)
    assert not found[~kept].any()
    metric = Metric(Dense(gram), rest @ gram, 0.0)
    exact = lost(rest - supported_least_squares(gram, rest @ gram, kept).values, metric)
    plain = lost(rest - rest * kept, metric)
    ours = lost(rest - found, metric)
    assert exact <= ours <= plain
    assert ours - exact < 0.1 * (plain - exact)


def test_values_of_a_row_without_numbers_stay_zero():
    rest = random(3, 5)
    kept = torch.zeros(3, 5, dtype=torch.bool)
    kept[0, 2] = True
    found = refitted_values(metric_of(rest).gram, rest, kept)
    assert torch.isfinite(found).all()
    assert not found[1:].any()
    nothing = refitted_values(metric_of(rest).gram, torch.zeros_like(rest), kept)
    assert not nothing.any()


@pytest.mark.parametrize("root", [None, *ROOTS.values()], ids=["weights", *ROOTS])
@pytest.mark.parametrize("n", [4, 12])
def test_more_turns_are_never_worse(n, root):
    weight = random(6, n, seed=n)
    metric = metric_of(weight, output=root)
    goal = goal_of(weight, metric)
    errors = [lost_at(goal, weight, turns_of(goal, 2, 5, turns), 2) for turns in (1, 2, 3, 5, 8)]
    svd = lost_at(goal, weight, torch.zeros_like(weight), 2)
    assert errors == sorted(errors, reverse=True)
    assert errors[0] < svd


def test_plain_turns_only_ever_gain():
    weight = random(16, 24)
    goal = Closest(weight)
    errors = [lost_at(goal, weight, turns_of(goal, 4, 60, turns), 4) for turns in range(1, 7)]
    assert errors == sorted(errors, reverse=True)
    assert errors[-1] < 0.98 * errors[0]


@pytest.mark.parametrize("size", [3, 10, 30, 300])
@pytest.mark.parametrize("with_inputs", [False, True])
def test_outliers_of_a_low_rank_matrix_are_found(with_inputs, size):
    low = random(20, 3) @ random(3, 30, seed=2)
    outliers = torch.zeros(20, 30, dtype=torch.float64)
    places = torch.randperm(600, generator=torch.Generator().manual_seed(1))[:12]
    outliers.flatten()[places] = size * random(12, seed=9).sign()
    weight = low + outliers
    goal = goal_of(weight, metric_of(weight) if with_inputs else None)
    found = turns_of(goal, 3, 12, 20)
    assert distance(weight - found, low) < 0.05
    assert lost_at(goal, weight, found, 3) < 1e-3 * lost_at(goal, weight, 0 * found, 3)


def test_ranks_are_independent_of_each_other():
    goal = goal_of(random(10, 14))
    together = list(take_turns(goal, [1, 3, 5], 20, 3))
    for rank, found in zip([1, 3, 5], together, strict=True):
        assert torch.equal(turns_of(goal, rank, 20, 3), found)
