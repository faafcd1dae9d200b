"""Schedules in a training loop: what is held, and what is left in the model."""

from __future__ import annotations

import copy

import pytest
import torch
from models import random, seeded
from sklearn.utils._param_validation import InvalidParameterError
from torch import nn
from torch.nn.utils import parametrizations

from skcompress import MagnitudePruner, Pruner
from skcompress.errors import (
    HeldWeightError,
    HookedOptimizerError,
    PlanMismatchError,
    ScheduleError,
)

X = random(64, 10, dtype=torch.float32)
Y = (X[:, 0] > 0).long()


def network():
    return seeded(lambda: nn.Sequential(nn.Linear(10, 32), nn.ReLU(), nn.Linear(32, 2)))


def share(model):
    weights = [model[0].weight, model[2].weight]
    return sum(int((w == 0).sum()) for w in weights) / sum(w.numel() for w in weights)


def train(model, optimizer, n=5):
    for _ in range(n):
        optimizer.zero_grad()
        nn.functional.cross_entropy(model(X), Y).backward()
        optimizer.step()


@pytest.mark.parametrize(
    "make",
    [
        lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, weight_decay=1e-2),
        lambda p: torch.optim.Adam(p, 1e-2),
        lambda p: torch.optim.AdamW(p, 1e-2, foreach=True),
        lambda p: torch.optim.SGD(p, 0.1, momentum=0.9, fused=True),
        lambda p: torch.optim.Adam([{"params": [one], "lr": 1e-2} for one in p]),
    ],
    ids=["sgd", "adam", "foreach", "fused", "groups"],
)
def test_zeros_grow_along_a_cubic_and_hold_under_optimizers(make):
    model = network()
    optimizer = make(model.parameters())
    train(model, optimizer)  # momentum of all values
    schedule = Pruner("lamp", sparsity=0.8).partial(model, n_steps=4, optimizer=optimizer)
    assert share(model) == schedule.sparsity == 0.0
    held = torch.zeros_like(model[0].weight, dtype=torch.bool)
    for number in range(1, 5):
        schedule.step()
        expected = 0.8 * (1 - (1 - number / 4) ** 3)
        assert schedule.sparsity == pytest.approx(expected)
        train(model, optimizer)
        assert share(model) == pytest.approx(expected, abs=2e-3)
        assert (model[0].weight[held] == 0).all()
        held = model[0].weight == 0
    report = schedule.finalize()
    assert report.zeros.zeros[1] == round(0.8 * 384)
    train(model, optimizer)
    assert share(model) < 0.1  # nothing holds them any more
    assert len(optimizer._optimizer_step_post_hooks) == 0


def test_what_is_trained_while_zeros_grow_is_better_than_what_is_cut_at_once():
    model = network()
    optimizer = torch.optim.Adam(model.parameters(), 1e-2)
    train(model, optimizer, 60)
    once = MagnitudePruner(0.9).fit_transform(model)
    schedule = MagnitudePruner(0.9).partial(model, n_steps=5, optimizer=optimizer)
    for _ in range(5):
        schedule.step()
        train(model, optimizer, 20)
    schedule.finalize()
    losses = [float(nn.functional.cross_entropy(m(X), Y)) for m in (model, once)]
    assert share(model) == pytest.approx(share(once), abs=1e-3)
    assert losses[0] < 0.5 * losses[1]


def test_nothing_is_put_into_the_model():
    model = network()
    names, hooks = list(model.state_dict()), len(model[0]._forward_pre_hooks)
    parameters = list(map(id, model.parameters()))
    optimizer = torch.optim.SGD(model.parameters(), 0.1)
    schedule = Pruner("magnitude", 0.5).partial(model, 1, optimizer)
    schedule.step()
    assert list(model.state_dict()) == names
    assert len(model[0]._forward_pre_hooks) == hooks
    assert list(map(id, model.parameters())) == parameters
    other = copy.deepcopy(model)
    assert share(other) == pytest.approx(0.5)
    train(other, torch.optim.SGD(other.parameters(), 0.1))
    assert share(other) < 0.1
    train(model, optimizer)
    assert share(model) == pytest.approx(0.5)


def test_a_schedule_goes_on_where_another_one_was():
    model = network()
    schedule = Pruner("magnitude", 0.8).partial(model, 4)
    schedule.step()
    schedule.step()
    later = network()
    later.load_state_dict(model.state_dict())
    with torch.no_grad():
        later[0].weight.add_(1.0)
    again = Pruner("magnitude", 0.8).partial(later, 4)
    again.load_state_dict(schedule.state_dict())
    assert again.sparsity == schedule.sparsity
    assert torch.equal(later[0].weight == 0, model[0].weight == 0)
    again.step()
    assert share(later) == pytest.approx(again.sparsity, abs=2e-3)
    other = nn.Sequential(nn.Linear(10, 8), nn.ReLU(), nn.Linear(8, 2))
    with pytest.raises(PlanMismatchError, match="layer '0' has shape"):
        Pruner("magnitude", 0.8).partial(other, 4).load_state_dict(schedule.state_dict())


def test_criteria_with_data_and_patterns():
    model = network()
    schedule = Pruner("wanda", 0.6).partial(model, 2)
    schedule.step(X)
    schedule.step(X)
    assert share(model) == pytest.approx(0.6, abs=2e-3)


def test_a_failed_step_changes_nothing():
    model = network()
    schedule = Pruner("wanda", 0.6).partial(model, 2)
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(ValueError, match="needs data"):
        schedule.step()
    assert schedule.n_done == 0
    assert all(map(torch.equal, before.values(), model.state_dict().values()))


def test_what_is_refused():
    model = network()
    for n_steps in (0, 1.5, True, None):
        with pytest.raises(InvalidParameterError, match="'n_steps' parameter of Pruner"):
            Pruner().partial(model, n_steps)
    schedule = Pruner().partial(model, 1)
    schedule.step()
    with pytest.raises(ScheduleError, match="all 1 steps"):
        schedule.step()
    parametrizations.weight_norm(model[0])
    with pytest.raises(HeldWeightError, match="layer '0' is computed from other parameters"):
        Pruner().partial(model, 2)


def with_closure(model, optimizer, n=5):
    def closure():
        optimizer.zero_grad()
        loss = nn.functional.cross_entropy(model(X), Y)
        loss.backward()
        return loss

    for _ in range(n):
        optimizer.step(closure)
    return float(nn.functional.cross_entropy(model(X), Y).detach())


def test_line_searches_see_the_pruned_network():
    model = network()
    optimizer = torch.optim.LBFGS(model.parameters(), line_search_fn="strong_wolfe")
    before = with_closure(model, optimizer, 1)  # what it remembers then is of all values
    schedule = MagnitudePruner(0.8).partial(model, n_steps=2, optimizer=optimizer)
    for _ in range(2):
        schedule.step()
        held = model[0].weight == 0
        after = with_closure(model, optimizer)
        assert (model[0].weight[held] == 0).all()
        assert not model[0].weight.grad[held].any()
    assert after < before
    schedule.finalize()
    with_closure(model, optimizer, 1)
    assert model[0].weight.grad[held].any()


def test_gradients_of_closures_in_a_parameter_of_several_weights():
    layer = seeded(lambda: nn.MultiheadAttention(8, 2))
    x = random(5, 3, 8, dtype=torch.float32)
    optimizer = torch.optim.SGD(layer.parameters(), 0.1)
    schedule = MagnitudePruner(0.5).partial(layer, n_steps=1, optimizer=optimizer)
    schedule.step()

    def closure():
        optimizer.zero_grad()
        layer(x, x, x)[0].square().sum().backward()

    optimizer.step(closure=closure)
    gradient, zero = layer.in_proj_weight.grad, layer.in_proj_weight == 0
    assert not gradient[zero].any()
    assert gradient[~zero].all()


def test_an_optimizer_without_hooks_is_refused():
    model = network()
    wrapped = type("Wrapped", (), {"step": lambda self: None})()
    with pytest.raises(HookedOptimizerError, match=r"got Wrapped: .* call hold\(\)"):
        MagnitudePruner(0.5).partial(model, optimizer=wrapped)
