"""What pruners refuse: which parameter or layer, what was received, what to do."""

from __future__ import annotations

import pytest
import torch
from models import random, seeded
from sklearn.utils._param_validation import InvalidParameterError
from torch import nn

from skcompress import LowRankCompressor, MagnitudePruner, Pruner
from skcompress.errors import (
    AllocationKindError,
    MetaWeightError,
    MinKeptError,
    MissingDataError,
    ModelTypeError,
    NoLayerError,
    NonFiniteWeightError,
    ScoreError,
    SelectionError,
    UnknownNameError,
)
from skcompress.protocols import Criterion
from skcompress.testing import check_untouched, snapshot

X = random(20, 12, dtype=torch.float32)


def network():
    return seeded(lambda: nn.Sequential(nn.Linear(12, 8), nn.ReLU(), nn.Linear(8, 3)))


def refused(pruner, error, words, data=None, model=None):
    model = network() if model is None else model
    state = snapshot(model)
    with pytest.raises(error, match=words):
        pruner.fit(model, data)
    check_untouched("after an error", model, state)
    assert not hasattr(pruner, "plan_")


@pytest.mark.parametrize("sparsity", [-0.1, 1, 1.0, 1.5, "half", None, True, float("nan")])
@pytest.mark.parametrize("kind", [Pruner, MagnitudePruner])
def test_sparsity_outside_its_range(kind, sparsity):
    refused(kind(sparsity=sparsity), InvalidParameterError, "sparsity.* of " + kind.__name__)


@pytest.mark.parametrize("pattern", ["4:2", "2:2", "0:4", "2-4", "2:4:8", ""])
def test_patterns_that_are_none(pattern):
    refused(Pruner(pattern=pattern), InvalidParameterError, "'pattern' parameter of Pruner.*'2:4'")


@pytest.mark.parametrize(
    ("settings", "what"),
    [
        ({"criterion": "wanda"}, r"what is asked for \(gram\) by Wanda\(\) of Pruner needs data"),
        ({"criterion": "lrp"}, r"\(relevance\) by LRP\(\)"),
        ({"refit": True}, "refit=True of Pruner needs data"),
        ({"allocation": "rd"}, r"\(distortion\)"),
        ({"recalibrate_norm": True}, "recalibrate_norm=True"),
    ],
)
def test_what_needs_data_without_data(settings, what):
    refused(Pruner(**settings), MissingDataError, what)


class Broken(Criterion):
    def __init__(self, how="nan"):
        self.how = how

    def scores(self, weight):
        if self.how == "shape":
            return weight[0]
        scores = weight.abs()
        scores[0, 0] = float("nan") if self.how == "nan" else -1.0
        return scores


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ("nan", "Broken gives the weight of layer '0' 1 NaN or infinite scores"),
        ("negative", "'0' negative scores, down to -1"),
        ("shape", r"scores of shape \(12,\), where the weight has \(8, 12\)"),
    ],
)
def test_scores_that_nothing_can_be_chosen_by(how, words):
    refused(Pruner(Broken(how)), ScoreError, words)


def test_a_least_number_that_leaves_too_few_zeros():
    words = r"min_kept=0.5 of Pruner keeps 60 of 120 values.*sparsity <= 0.5"
    refused(Pruner(sparsity=0.8, min_kept=0.5), MinKeptError, words)
    refused(Pruner(min_kept=1.5), InvalidParameterError, "min_kept")
    refused(Pruner(min_kept=True), InvalidParameterError, "min_kept")


def test_models_and_layers_with_nothing_to_prune():
    refused(Pruner(), NoLayerError, "Pruner found no layer", model=nn.BatchNorm1d(4))
    words = "no multiple of 8"
    refused(Pruner(pattern="4:8", layers="0"), NoLayerError, words)
    refused(Pruner(layers="nowhere"), SelectionError, "nowhere")
    with pytest.raises(ModelTypeError):
        Pruner().fit(nn.Linear)


def test_layers_that_the_data_does_not_reach_stay_and_are_named():
    class Idle(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle = nn.Linear(12, 4), nn.Linear(12, 4)

        def forward(self, x):
            return self.used(x)

    for criterion in ("wanda", "taylor", "lrp"):
        pruner = Pruner(criterion).fit(seeded(Idle), X)
        assert pruner.plan_["idle"].reason == "no batch of the data reaches it"
        assert pruner.report_.zeros.zeros[1] == 24


def test_weights_that_are_not_finite_or_have_no_values():
    model = network()
    with torch.no_grad():
        model[2].weight[1, 1] = float("inf")
    refused(Pruner(), NonFiniteWeightError, "layer '2' has 1 NaN or infinite", model=model)
    with pytest.raises(MetaWeightError, match="layer '0'"):
        Pruner().fit(network().to("meta"))


def test_unknown_names_and_allocations_of_the_other_kind():
    refused(Pruner("lampe"), UnknownNameError, "did you mean 'lamp'")
    words = "must be one that divides zeros; got 'energy', .*'erk', 'global', 'rd'"
    refused(Pruner(allocation="energy"), AllocationKindError, words)
    words = "LowRankCompressor must be one that divides ranks; got 'erk'"
    refused(LowRankCompressor(allocation="erk"), AllocationKindError, words)
