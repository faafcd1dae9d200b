from __future__ import annotations

import itertools

import numpy as np
import pytest

from skcompress.allocations.global_budget import GlobalBudget, knapsack, lower_hull
from skcompress.allocations.options import Options, frontier, pooled_options
from skcompress.errors import BudgetError
from skcompress.protocols import Curve, Layer


def random_layer(rng: np.random.Generator, name: str, *, n_curves: int = 1) -> Layer:
    rows, columns = rng.integers(3, 9, size=2)
    curves = []
    for _ in range(n_curves):
        values = np.sort(rng.exponential(size=min(rows, columns)) ** 2)[::-1]
        ranks = np.arange(1, len(values) + 1)
        tails = np.append(np.cumsum(values[::-1])[::-1][1:], 0.0)
        slope = rows + columns - rng.integers(0, 4)
        curves.append(Curve("x", ranks, ranks * slope, tails, float(values.sum()), len(values)))
    return Layer(name, int(rows * columns), tuple(curves))


def summed(layers, choices):
    cost, error = 0, 0.0
    for layer, choice in zip(layers, choices, strict=True):
        if choice is None:
            cost += layer.dense
        else:
            curve = layer.curves[choice.curve]
            cost += curve.costs[choice.option]
            error += curve.errors[choice.option] / curve.total
    return cost, error


def exhaustive(layers, budget):
    """Least summed error over every combination of options."""
    tables = [pooled_options(layer) for layer in layers]
    best = np.inf
    for positions in itertools.product(*(range(len(t.costs)) for t in tables)):
        cost = sum(t.costs[p] for t, p in zip(tables, positions, strict=True))
        if cost <= budget:
            best = min(best, sum(t.errors[p] for t, p in zip(tables, positions, strict=True)))
    return best


@pytest.mark.parametrize("seed", range(40))
def test_is_as_good_as_exhaustive_search(seed):
    rng = np.random.default_rng(seed)
    layers = [random_layer(rng, f"l{i}", n_curves=1 + i % 2) for i in range(4)]
    n_fixed = int(rng.integers(0, 20))
    total = n_fixed + sum(layer.dense for layer in layers)
    smallest = sum(pooled_options(layer).costs.min() for layer in layers) + n_fixed
    for rank in np.linspace(smallest / total + 1e-9, 1.0, 9):
        choices = GlobalBudget().allocate(layers, float(rank), n_fixed)
        cost, error = summed(layers, choices)
        assert cost + n_fixed <= rank * total + 1e-6
        best = exhaustive(layers, rank * total - n_fixed + 1e-6)
        assert error == pytest.approx(best, abs=1e-12)


def test_many_layers_are_within_a_step_of_the_bound():
    rng = np.random.default_rng(0)
    layers = [random_layer(rng, f"l{i}", n_curves=2) for i in range(120)]
    total = sum(layer.dense for layer in layers)
    choices = GlobalBudget().allocate(layers, 0.6, 0)
    cost, _ = summed(layers, choices)
    steps = [c.costs[0] for layer in layers for c in layer.curves]
    assert 0.6 * total - max(steps) <= cost <= 0.6 * total


def test_unreachable_budget_states_the_smallest_and_that_one_works():
    rng = np.random.default_rng(3)
    layers = [random_layer(rng, f"l{i}") for i in range(3)]
    with pytest.raises(BudgetError, match="keeps at least") as caught:
        GlobalBudget().allocate(layers, 0.01, 5)
    smallest = caught.value.smallest
    GlobalBudget().allocate(layers, smallest, 5)
    with pytest.raises(BudgetError):
        GlobalBudget().allocate(layers, smallest - 2e-3, 5)


def test_layers_without_energy_get_the_cheapest_option():
    curve = Curve("x", np.array([1, 2]), np.array([4, 8]), np.zeros(2), 0.0, 2)
    choices = GlobalBudget().allocate([Layer("zero", 10, (curve,))], 1.0, 0)
    assert choices[0] is not None
    assert choices[0].option == 0


def test_hull_lies_below_every_option():
    rng = np.random.default_rng(1)
    costs = np.sort(rng.choice(1000, 60, replace=False))
    errors = np.sort(rng.random(60))[::-1].copy()
    options = frontier(Options(costs, errors, np.zeros(60, int), np.arange(60)))
    hull = lower_hull(options)
    below = np.interp(options.costs, options.costs[hull], options.errors[hull])
    assert (below <= options.errors + 1e-12).all()
    assert hull[0] == 0
    assert hull[-1] == len(options.costs) - 1


def test_divide_takes_the_best_of_a_layer_alone():
    options = Options(np.array([2, 5, 9]), np.array([0.9, 0.4, 0.0]), np.zeros(3), np.arange(3))
    assert knapsack([options], 6) == [1]
    assert knapsack([options], 9) == [2]
