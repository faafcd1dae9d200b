"""Every way to misuse a compressor: the error says what, where and what to do."""

from __future__ import annotations

import re

import numpy as np
import pytest
import torch
from sklearn.exceptions import NotFittedError
from sklearn.utils._param_validation import InvalidParameterError
from torch import nn

from skcompress import LowRankCompressor, SVDCompressor, TuckerCompressor, count_parameters
from skcompress.errors import (
    BudgetError,
    HugeWeightError,
    MetaWeightError,
    ModelTypeError,
    NoLayerError,
    NonFiniteWeightError,
    PlanMismatchError,
    PluginTypeError,
    SelectionError,
    UnknownNameError,
)
from skcompress.testing import check_untouched, snapshot


def network() -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 20))


@pytest.fixture
def model():
    """A network in training mode with a hook, which every test must leave as it was."""
    model = network().train()
    model[1].eval()
    model[0].register_forward_hook(lambda *_: None)
    before = snapshot(model)
    yield model
    check_untouched("after an error", model, before)


BAD_RANKS = [
    0, 0.0, -1, -0.5, 1.3, float("nan"), float("inf"), True, False, "half", None, [3], {},
    {"0": 1.5}, {"0": True}, {"0": {"1": 2}},
]  # fmt: skip


@pytest.mark.parametrize("rank", BAD_RANKS)
@pytest.mark.parametrize("compressor", [SVDCompressor, TuckerCompressor, LowRankCompressor])
def test_bad_rank(compressor, rank, model):
    with pytest.raises(InvalidParameterError, match=rf"'rank' parameter of {compressor.__name__}"):
        compressor(rank=rank).fit(model)


def test_bad_rank_shows_what_was_received(model):
    with pytest.raises(InvalidParameterError, match=r"Got 1\.3 instead"):
        SVDCompressor(rank=1.3).fit(model)


@pytest.mark.parametrize("parameters", [
    {"scheme": "diagonal"}, {"metric": "cosine"}, {"reconstruction": "later"}, {"layers": 3},
    {"exclude": 1.5}, {"device": 7}, {"n_jobs": "all"}, {"warm_start": "yes"}, {"verbose": "loud"},
    {"random_state": "seed"}, {"allocation": 3},
])  # fmt: skip
def test_bad_parameter_names_itself_and_its_choices(parameters, model):
    (name,) = parameters
    with pytest.raises(InvalidParameterError, match=f"'{name}' parameter of SVDCompressor must be"):
        SVDCompressor(**parameters).fit(model)


def test_unknown_allocation_suggests(model):
    with pytest.raises(UnknownNameError, match=r"'globl'.*did you mean 'global'"):
        SVDCompressor(allocation="globl").fit(model)


def test_unknown_decomposition_suggests(model):
    with pytest.raises(UnknownNameError, match=r"'tuker'.*did you mean 'tucker'"):
        LowRankCompressor(decomposition="tuker").fit(model)


def test_decomposition_class_instead_of_instance(model):
    from skcompress.decompositions.svd import SVD

    with pytest.raises((PluginTypeError, InvalidParameterError)):
        LowRankCompressor(decomposition=(SVD,)).fit(model)


def test_two_decompositions_of_one_scheme(model):
    with pytest.raises(InvalidParameterError, match="Got 'output' twice"):
        LowRankCompressor(decomposition=("svd", "svd")).fit(model)


@pytest.mark.parametrize("thing", [np.zeros((3, 3)), None, "model", torch.zeros(3)])
def test_not_a_module(thing):
    with pytest.raises(ModelTypeError, match=type(thing).__name__):
        SVDCompressor().fit(thing)


def test_class_instead_of_instance():
    with pytest.raises(ModelTypeError, match="class Linear: pass an instance"):
        SVDCompressor().fit(nn.Linear)


@pytest.mark.parametrize("layerless", [nn.ReLU(), nn.Sequential(), nn.BatchNorm2d(4)])
def test_no_layer_to_compress(layerless):
    with pytest.raises(NoLayerError, match="no layer to compress"):
        SVDCompressor().fit(layerless)


def test_no_layer_says_why_each_was_left():
    with pytest.raises(NoLayerError, match="0: a form in two inputs"):
        SVDCompressor().fit(nn.Sequential(nn.Bilinear(3, 3, 3)))


@pytest.mark.parametrize("parameter", ["layers", "exclude"])
def test_pattern_that_matches_nothing(parameter, model):
    with pytest.raises(SelectionError, match=rf"{parameter}='encoder\.\*' matches no layer"):
        SVDCompressor(**{parameter: ["encoder.*"]}).fit(model)


def test_rank_pattern_that_matches_nothing(model):
    with pytest.raises(SelectionError, match="rank='head' matches no layer"):
        SVDCompressor(rank={"0": 0.5, "head": 4}).fit(model)


def test_misspelt_layer_suggests():
    model = nn.ModuleDict({"encoder": nn.Linear(9, 9), "decoder": nn.Linear(9, 9)})
    with pytest.raises(SelectionError, match="did you mean 'encoder'"):
        SVDCompressor(layers="encodr").fit(model)


def test_type_that_matches_nothing(model):
    with pytest.raises(SelectionError, match="no layer of type Conv2d"):
        SVDCompressor(layers=nn.Conv2d).fit(model)


def test_everything_excluded(model):
    with pytest.raises(NoLayerError, match="in exclude"):
        SVDCompressor(exclude="*").fit(model)


@pytest.mark.parametrize("data", [None, torch.ones(3, 30)])
def test_huge_weights_are_refused_and_large_ones_compressed(data):
    model = nn.Sequential(nn.Linear(30, 30, bias=False))
    nn.init.orthogonal_(model[0].weight)
    weight = model[0].weight.data
    for scale in (1e18, 1e-30):
        weight.mul_(scale)
        small = SVDCompressor(0.9).fit_transform(model)[0]
        right, left = (factor.weight.detach().double() for factor in small)
        rest = (left @ right - weight.double()) / scale
        assert float(rest.square().sum()) == pytest.approx(17, rel=1e-3)  # of rank 13
        assert bool(left.any())
        assert bool(right.any())
        weight.div_(scale)
    weight.mul_(1e20)
    with pytest.raises(HugeWeightError, match=r"layer '0' has values up to .*e\+19"):
        SVDCompressor(0.9).fit(model, data)


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
@pytest.mark.parametrize("compressor", [SVDCompressor(), TuckerCompressor(n_jobs=2)])
def test_non_finite_weight_names_the_layer(compressor, value):
    model = network()
    with torch.no_grad():
        model[2].weight[3, 4] = value
    before = snapshot(model)
    with pytest.raises(NonFiniteWeightError, match="layer '2' has 1 NaN or infinite"):
        compressor.fit(model)
    check_untouched("after an error", model, before)


def test_meta_weights_cannot_be_fitted():
    with pytest.raises(MetaWeightError, match="'0' is on the meta device"):
        SVDCompressor().fit(network().to("meta"))


def test_unreachable_budget_states_the_smallest_and_that_one_works(model):
    with pytest.raises(
        BudgetError, match=r"rank=0\.01 cannot be reached: the model keeps"
    ) as caught:
        SVDCompressor(rank=0.01).fit(model)
    stated = float(re.search(r"Ask for rank >= ([\d.]+)", str(caught.value)).group(1))
    assert SVDCompressor(rank=stated).fit(model).n_parameters_out_ <= stated * 908 + 1


def test_transform_before_fit(model):
    with pytest.raises(NotFittedError):
        SVDCompressor().transform(model)


def test_transform_of_another_architecture_names_the_first_difference(model):
    compressor = SVDCompressor(rank=0.7).fit(model)
    other = nn.Sequential(nn.Linear(16, 24), nn.ReLU(), nn.Linear(24, 21))
    expected = r"layer '2' is a Linear of shape 21x24, the plan expects a Linear of shape 20x24"
    with pytest.raises(PlanMismatchError, match=expected):
        compressor.transform(other)
    with pytest.raises(PlanMismatchError, match="layer '2' is missing"):
        compressor.transform(nn.Sequential(nn.Linear(16, 24)))
    longer = nn.Sequential(*network(), nn.Linear(20, 5))
    with pytest.raises(PlanMismatchError, match="layer '3' is a Linear of shape 5x20"):
        compressor.transform(longer)


def test_model_that_cannot_be_copied():
    class Stubborn(nn.Module):
        def __init__(self):
            super().__init__()
            self.fc = nn.Linear(9, 9)
            self.handle = iter([1])

        def __deepcopy__(self, memo):
            raise RuntimeError("no copies")

    with pytest.raises(ValueError, match=r"cannot be copied.*no copies"):
        SVDCompressor(rank=0.8).fit_transform(Stubborn())


def test_a_failing_plugin_leaves_no_trace(model):
    from skcompress.decompositions.svd import SVD

    class Failing(SVD):
        def factorize(self, weight):
            raise ArithmeticError("does not converge")

    compressor = LowRankCompressor(decomposition=Failing())
    with pytest.raises(ArithmeticError):
        compressor.fit(model)
    assert not hasattr(compressor, "plan_")


def test_transform_of_a_model_whose_layer_cannot_be_compressed_says_why(model):
    compressor = SVDCompressor(rank=2).fit(model)
    other = network()
    other[0].forward = lambda x: x
    reason = r"layer '0' cannot be compressed.*rewrites forward"
    with pytest.raises(PlanMismatchError, match=reason):
        compressor.transform(other)


def tied(*, share: bool) -> nn.Module:
    model = nn.ModuleDict({"embedding": nn.Embedding(40, 16), "head": nn.Linear(16, 40)})
    if share:
        model["head"].weight = model["embedding"].weight
    return model


def test_moving_to_the_meta_device_does_not_lose_ties():
    model = tied(share=True)
    compressor = SVDCompressor(rank=0.6)
    small = compressor.fit_transform(model)
    skeleton = compressor.transform(tied(share=True).to("meta"))
    assert all(p.is_meta for p in skeleton.parameters())
    assert count_parameters(skeleton) == count_parameters(small) == compressor.n_parameters_out_


def test_transform_of_a_model_with_other_ties_says_so():
    together, apart = tied(share=True), tied(share=False)
    with pytest.raises(PlanMismatchError, match="'embedding' shares its weight with no other"):
        SVDCompressor(rank=0.6).fit(together).transform(apart)
    with pytest.raises(PlanMismatchError, match="'embedding' shares its weight with head"):
        SVDCompressor(rank=0.6).fit(apart).transform(together)
