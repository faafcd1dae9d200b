"""Least squares on a support against one system solved after another."""

from __future__ import annotations

import pytest
import torch
from models import random

import skcompress.supported
from skcompress.supported import supported_least_squares


@pytest.fixture(params=[1 << 24, 500], ids=["all rows at once", "few rows at a time"])
def problem(request, monkeypatch):
    monkeypatch.setattr(skcompress.supported, "_AT_ONCE", request.param)
    x = random(200, 20) @ random(20, 20, seed=2)
    gram = x.mT @ x / 200
    cross = random(9, 20, seed=3) @ gram
    kept = random(9, 20, seed=4) > 0
    kept[0], kept[1], kept[2] = False, True, True
    return gram, cross, kept


def test_every_row_solves_its_own_system(problem):
    gram, cross, kept = problem
    values, costs = supported_least_squares(gram, cross, kept)
    assert costs is None
    assert not values[~kept].any()
    for row, support, goal in zip(values, kept, cross, strict=True):
        expected = torch.linalg.solve(gram[support][:, support], goal[support])
        torch.testing.assert_close(row[support], expected)


def test_costs_are_what_the_loss_grows_by_once_the_rest_has_made_up_for_it(problem):
    gram, cross, kept = problem

    def losses(support):
        values = supported_least_squares(gram, cross, support).values
        return (values @ gram * values).sum(1) - 2 * (cross * values).sum(1)

    costs = supported_least_squares(gram, cross, kept, costs=True).costs
    assert not costs[~kept].any()
    before = losses(kept)
    for column in range(20):
        without = kept.clone()
        without[:, column] = False
        torch.testing.assert_close(losses(without) - before, costs[:, column])


def test_a_singular_gram_gives_finite_values():
    gram = torch.ones(6, 6, dtype=torch.float64)
    kept = torch.ones(2, 6, dtype=torch.bool)
    kept[0, 0] = False
    assert supported_least_squares(gram, gram[:2].clone(), kept).values.isfinite().all()
