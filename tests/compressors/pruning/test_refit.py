"""Values that stay, fitted in the order of execution, against least squares by hand."""

from __future__ import annotations

import pytest
import torch
from data_cases import error, images, network, same, train
from models import LAYERS, layer, random, seeded
from torch import nn

from skcompress import Pruner
from skcompress.compressors.pruning.refitting import RIDGE
from skcompress.errors import CalibratedWeightError
from skcompress.testing import check_untouched, snapshot


def test_one_layer_is_least_squares_on_what_stays():
    model = seeded(lambda: nn.Sequential(nn.Linear(12, 5))).double()
    x = random(300, 12) @ random(12, 12, seed=2) + 1
    sparse = Pruner("magnitude", 0.5, refit=True, min_kept=0).fit_transform(model, x)
    inputs, goals = x - x.mean(0), model(x).detach() - model(x).detach().mean(0)
    gram = inputs.mT @ inputs / 300
    ridge = RIDGE * float(gram.diagonal().mean())
    for row, weight, y in zip(sparse[0].weight, model[0].weight, goals.mT, strict=True):
        support = row != 0
        system = gram[support][:, support] + ridge * torch.eye(int(support.sum()))
        goal = (inputs.mT @ y / 300)[support] + ridge * weight.detach()[support]
        torch.testing.assert_close(row.detach()[support], torch.linalg.solve(system, goal))
    # The bias takes what the mean loses.
    torch.testing.assert_close(sparse(x).mean(0), model(x).mean(0))


def test_later_layers_make_up_for_those_before():
    x = random(400, 16, dtype=torch.float32)
    model = seeded(lambda: nn.Sequential(
        nn.Linear(16, 32), nn.ReLU(), nn.Linear(32, 32), nn.ReLU(), nn.Linear(32, 8)))  # fmt: skip
    alone = Pruner("obs", 0.6, allocation="uniform").fit_transform(model, x)
    plain = Pruner("magnitude", 0.6, allocation="uniform").fit_transform(model, x)
    refit = Pruner("obs", 0.6, allocation="uniform", refit=True).fit_transform(model, x)
    assert error(model, refit, x) < error(model, alone, x) < error(model, plain, x)
    for a, b in zip(alone.parameters(), refit.parameters(), strict=True):
        assert torch.equal(a == 0, b == 0)


@pytest.mark.parametrize("name", [n for n in LAYERS if n not in ("experts", "attention")])
def test_layers_of_every_kind_come_closer(name):
    model, args = layer(name)
    wrapped = nn.Sequential(model)

    def lost(refit):
        sparse = Pruner("magnitude", 0.3, refit=refit, min_kept=0).fit_transform(wrapped, [args[0]])
        found, expected = sparse(args[0]), wrapped(args[0])
        if isinstance(found, tuple):
            found, expected = found[0], expected[0]
        return float((found - expected).norm())

    assert lost(True) <= lost(False) * (1 + 1e-6)


@pytest.fixture(scope="module")
def trained(digits):
    x, labels = digits
    build = lambda: nn.Sequential(  # noqa: E731
        nn.Conv2d(1, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
        nn.Conv2d(16, 24, 3, stride=2, bias=False), nn.BatchNorm2d(24), nn.ReLU(),
        nn.Flatten(), nn.Linear(216, 64), nn.ReLU(), nn.Linear(64, 10),
    )  # fmt: skip
    return train(seeded(build), x, labels, 1e-2, 6), x, labels


def accuracy(model, x, labels):
    with torch.no_grad():
        return float((model(x[1200:]).argmax(1) == labels[1200:]).float().mean())


def test_a_trained_network_keeps_most_of_its_accuracy(trained):
    model, x, labels = trained
    dense = accuracy(model, x, labels)
    plain = accuracy(Pruner("lamp", 0.93).fit_transform(model), x, labels)
    refit = Pruner("lamp", 0.93, refit=True)
    found = accuracy(refit.fit_transform(model, x[:256]), x, labels)
    rounds = Pruner("lamp", 0.93, refit=True, refit_rounds=4)
    best = accuracy(rounds.fit_transform(model, x[:256]), x, labels)
    assert dense > 0.9
    assert plain < dense - 0.15
    assert found > plain + 0.1
    assert rounds.report_.divergence < refit.report_.divergence
    assert best > dense - 0.1


def test_rounds_keep_the_numbers_that_were_chosen(trained):
    model, x, _ = trained
    settings = {"refit": True, "min_kept": 5}
    one = Pruner("lamp", 0.8, **settings).fit(model, x[:128])
    more = Pruner("lamp", 0.8, refit_rounds=3, **settings).fit(model, x[:128])
    assert one.kept_ == more.kept_
    small = Pruner(pattern="2:4", refit=True, refit_rounds=3).fit_transform(model, x[:128])
    blocks = small[7].weight.unflatten(-1, (-1, 4))
    assert ((blocks != 0).sum(-1) == 2).all()


def test_a_weight_used_twice_keeps_its_values_and_others_make_up_for_it():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.one, self.other, self.last = (nn.Linear(8, 8) for _ in range(3))
            self.other.weight = self.one.weight

        def forward(self, x):
            return self.last(torch.relu(self.other(torch.relu(self.one(x)))))

    model, x = seeded(Twice), random(200, 8, dtype=torch.float32)
    sparse = Pruner("magnitude", 0.5, refit=True).fit_transform(model, x)
    kept = sparse.one.weight != 0
    assert sparse.other.weight is sparse.one.weight
    assert torch.equal(sparse.one.weight[kept], model.one.weight[kept])
    assert not torch.equal(
        sparse.last.weight[sparse.last.weight != 0], model.last.weight[sparse.last.weight != 0]
    )


def test_the_model_is_untouched_and_fits_repeat():
    model, x = network(), images()
    state = snapshot(model)
    one, other = (
        Pruner("obs", 0.7, refit=True, random_state=0).fit_transform(model, x) for _ in range(2)
    )
    check_untouched("refit", model, state)
    assert same(one, other)


def test_other_weights_need_another_fit():
    model, later = network(), network()
    with torch.no_grad():
        later[7].weight.add_(0.1)
    pruner = Pruner("wanda", 0.5).fit(model, images())
    with pytest.raises(CalibratedWeightError, match="layer '7' is not the one that was fitted"):
        pruner.transform(later)


def test_what_is_measured_is_in_the_report():
    model, x = network(), images()
    pruner = Pruner("lamp", 0.6, refit=True).fit(model, x)
    assert pruner.report_.divergence > 0
    assert set(pruner.report_.measured) == set(pruner.kept_)
    assert [step.name for step in pruner.report_.steps][:4] == [
        "observe", "score", "allocate", "refit",
    ]  # fmt: skip


@pytest.mark.parametrize("settings", [{"criterion": "magnitude", "refit": True},
                                      {"criterion": "wanda"}, {"criterion": "taylor"}])  # fmt: skip
def test_classes_that_count_more_keep_more(settings):
    model = seeded(lambda: nn.Sequential(nn.Linear(12, 24), nn.ReLU(), nn.Linear(24, 6)))
    x = random(400, 12, dtype=torch.float32)
    # Each class lives among inputs of its own.
    labels = torch.arange(400) % 2
    x[labels == 0, :6] = 0
    x[labels == 1, 6:] = 0

    def lost(class_weight, label):
        pruner = Pruner(sparsity=0.7, class_weight=class_weight, **settings)
        small = pruner.fit_transform(model, [(x, labels)])
        own = x[labels == label]
        return error(model, small, own)

    for label in (0, 1):
        assert lost({label: 50.0}, label) < lost({1 - label: 50.0}, label)


@pytest.mark.parametrize(
    "settings",
    [
        {"refit": True, "refit_rounds": 4},
        {"refit": True, "refit_rounds": 3, "pattern": "2:4"},
        {"refit": True, "sparsity": 0.3},
        {"criterion": "obs", "sparsity": 0.3},
    ],
)
def test_zeros_of_before_stay_zero(settings):
    model = seeded(lambda: nn.Sequential(nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 24)))
    x = random(200, 24, dtype=torch.float32)
    zero = random(24, 24, dtype=torch.float32) < 0
    with torch.no_grad():
        for layer in (model[0], model[2]):
            layer.weight[zero] = 0
    pruner = Pruner("magnitude", 0.7).set_params(**settings)
    sparse = pruner.fit_transform(model, x)
    for layer in (sparse[0], sparse[2]):
        assert not layer.weight[zero].any()
        assert layer.weight[~zero].any()
