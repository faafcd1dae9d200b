"""Recurrent layers are fitted to what they are given when they run on their own states."""

from __future__ import annotations

import copy

import pytest
import torch
from models import distance, random, seeded
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

from skcompress import Pruner, SVDCompressor

CLASSES = {
    "lstm": lambda **k: nn.LSTM(10, 16, **k),
    "projected": lambda **k: nn.LSTM(10, 16, proj_size=8, **k),
    "gru": lambda **k: nn.GRU(10, 16, **k),
    "rnn": lambda **k: nn.RNN(10, 16, **k),
}
every_class = pytest.mark.parametrize("make", CLASSES.values(), ids=CLASSES.keys())


class Packed(nn.Module):
    """Runs a recurrent layer on the parts of sequences that count."""

    def __init__(self, layer: nn.RNNBase):
        super().__init__()
        self.layer = layer

    def forward(self, x, lengths):
        packed = pack_padded_sequence(x, lengths, batch_first=True, enforce_sorted=False)
        return self.layer(packed)[0].data


def layer(make, **settings) -> nn.RNNBase:
    """A layer whose states matter to what it does next."""
    result = seeded(lambda: make(batch_first=True, dtype=torch.float64, **settings)).eval()
    with torch.no_grad():
        for name, parameter in result.named_parameters():
            if name.startswith("weight_hh"):
                parameter.mul_(3)
    return result


def data(seed: int = 0) -> torch.Tensor:
    """Sequences with a mean, which biases have to follow."""
    return random(48, 20, 10, seed=seed) + 0.5


def fit(model: nn.Module, x, **settings) -> nn.Module:
    settings = {"rank": 0.6, "allocation": "uniform", "sensitivity": 0.0, **settings}
    return SVDCompressor(**settings).fit_transform(model, x)


def error(small: nn.Module, dense: nn.Module, *x) -> float:
    """Of all states, relative."""
    with torch.no_grad():
        found, goal = (m(*x) for m in (small, dense))
    found, goal = (y if isinstance(y, torch.Tensor) else y[0] for y in (found, goal))
    return float((found - goal).square().sum() / (goal - goal.mean()).square().sum())


@every_class
@pytest.mark.parametrize("settings", [{}, {"bias": False}, {"bidirectional": True}], ids=str)
def test_states_come_closer_than_those_of_weights_by_themselves(make, settings):
    dense, x = layer(make, num_layers=2, **settings), data()
    before = copy.deepcopy(dense.state_dict())
    small = fit(dense, x)
    alone = fit(dense, x, reconstruction="independent")
    assert error(small, dense, x) < error(alone, dense, x)
    assert error(small, dense, data(1)) < 1.02 * error(alone, dense, data(1))
    assert all(torch.equal(value, before[name]) for name, value in dense.state_dict().items())


@every_class
def test_full_rank_is_the_original(make):
    dense, x = layer(make, num_layers=2), data()
    small = fit(dense, x, rank=1.0, pivot=True)
    assert error(small, dense, data(1)) < 1e-12


def test_the_same_twice_and_on_fewer_positions():
    dense, x = layer(CLASSES["lstm"]), data()
    one, other = (fit(dense, x, max_positions=50, random_state=3) for _ in range(2))
    assert distance(one(x), other(x)) == 0
    assert distance(one(x), fit(dense, x, max_positions=50, random_state=4)(x)) > 0


def test_no_round_is_worse_than_the_weights_by_themselves():
    # Of one sequence alone nothing can be learnt that its own states do not contradict.
    dense, x = layer(CLASSES["rnn"]), data()[:1, :3]
    alone = fit(dense, x, reconstruction="independent")
    assert error(fit(dense, x), dense, x) <= error(alone, dense, x) * (1 + 1e-9)


def test_beyond_the_end_of_a_sequence_nothing_counts():
    dense = Packed(layer(CLASSES["lstm"], num_layers=2))
    lengths = torch.arange(48) % 20 + 1
    x, other = data(), data()
    other[torch.arange(20) >= lengths[:, None]] = 1e3
    small, same = (fit(dense, [{"x": v, "lengths": lengths}]) for v in (x, other))
    assert distance(small(x, lengths), same(x, lengths)) == 0
    alone = fit(dense, [{"x": x, "lengths": lengths}], reconstruction="independent")
    assert error(small, dense, x, lengths) < 0.9 * error(alone, dense, x, lengths)


def test_biases_take_the_means():
    dense, x = layer(CLASSES["gru"]), data()
    small = fit(dense, x)
    changed = {
        n for n, b in dense.named_parameters() if "bias" in n and b.ne(getattr(small, n)).any()
    }
    assert changed == {"bias_ih_l0", "bias_hh_l0"}
    size = dense.hidden_size
    # Only for what the reset gate multiplies has the second one anything to say.
    assert torch.equal(small.bias_hh_l0[: 2 * size], dense.bias_hh_l0[: 2 * size])


def test_weights_that_stay_dense_stay_what_they_are():
    dense, x = layer(CLASSES["lstm"]), data()
    small, alone = (
        fit(dense, x, rank={"weight_hh_l0": 0.5}, reconstruction=how)
        for how in ("sequential", "independent")
    )
    assert torch.equal(small.weight_ih_l0, dense.weight_ih_l0)
    assert error(small, dense, x) < error(alone, dense, x)


def test_pruned_weights_are_fitted_the_same_way():
    dense, x = layer(CLASSES["lstm"]), data()
    plain, refit = (
        Pruner(sparsity=0.5, refit=refit).fit_transform(dense, x) for refit in (False, True)
    )
    assert error(refit, dense, x) < error(plain, dense, x)


def test_a_layer_that_is_called_step_by_step_is_fitted_as_others_are():
    class Steps(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = layer(CLASSES["lstm"])

        def forward(self, x):
            states, h = [], None
            for step in x.split(1, dim=1):
                y, h = self.layer(step, h)
                states.append(y)
            return torch.cat(states, dim=1)

    dense, x = Steps(), data()
    small = fit(dense, x)
    assert error(small, dense, x) < 0.5
