from __future__ import annotations

import pytest
import torch
from models import LAYERS, layer, seeded
from torch import nn
from torch.nn.utils import parametrizations

from skcompress import NuclearNorm, SVDCompressor, count_parameters
from skcompress.errors import ModelTypeError, NoLayerError, SelectionError
from skcompress.layers import kind_of
from skcompress.layers.kinds import layer_kinds
from skcompress.network.weights import check_model, check_patterns, matches, require_sites, select


class Block(nn.Module):
    def __init__(self):
        super().__init__()
        self.attention = nn.MultiheadAttention(8, 2)
        self.norm = nn.LayerNorm(8)
        self.up = nn.Linear(8, 16)
        self.down = nn.Linear(16, 8)


class Network(nn.Module):
    """Something of everything, the same layer under two names, and a bare parameter."""

    def __init__(self):
        super().__init__()
        self.embed = nn.Embedding(20, 8)
        self.blocks = nn.ModuleList([Block(), Block()])
        self.recurrent = nn.GRU(8, 8)
        self.depthwise = nn.Conv1d(8, 8, 3, groups=8)
        self.alias = self.blocks[1].up
        self.token = nn.Parameter(torch.zeros(1, 1, 8))
        self.scale = nn.Parameter(torch.ones(8))


@pytest.fixture
def network() -> Network:
    return seeded(Network)


def names(model, *arguments) -> list[str]:
    return [site.name for site in select(model, *arguments).sites]


EVERYTHING = [
    "embed",
    *(f"blocks.{i}.{n}" for i in (0, 1) for n in (
        "attention.q_proj", "attention.k_proj", "attention.v_proj", "attention.out_proj",
        "up", "down")),
    "recurrent.weight_ih_l0",
    "recurrent.weight_hh_l0",
]  # fmt: skip


def test_every_layer_is_found_once_in_the_order_of_the_model(network):
    assert names(network) == EVERYTHING


def test_everything_that_owns_parameters_is_found_or_left_with_a_reason(network):
    found = select(network)
    reasons = {left.name: left.reason for left in found.left}
    assert set(reasons) == {"(model)", "blocks.0.norm", "blocks.1.norm", "depthwise"}
    assert "token (1, 1, 8)" in reasons["(model)"]
    assert "scale" not in reasons["(model)"]
    assert reasons["blocks.0.norm"] == "vectors only: nothing to factorise"
    assert "depthwise" in reasons["depthwise"]
    assert sorted(found.order) == sorted([*EVERYTHING, *reasons])
    weights = sum(site.slot.size for site in found.sites)
    left = sum(item.size for item in found.left)
    biases = 2 * (24 + 8 + 16 + 8) + 2 * 24
    assert weights + left + biases == count_parameters(network)


def test_sizes_of_what_is_left_are_of_the_module_alone(network):
    left = {item.name: item for item in select(network).left}
    assert left["(model)"].size == 16
    assert left["(model)"].shape == (1, 1, 8)
    assert left["depthwise"].size == 32
    assert left["depthwise"].kind == "Conv1d"


@pytest.mark.parametrize(
    ("pattern", "expected"),
    [
        ("embed", ["embed"]),
        ("blocks.0", [n for n in EVERYTHING if n.startswith("blocks.0")]),
        ("blocks.0.attention", [n for n in EVERYTHING if n.startswith("blocks.0.att")]),
        ("blocks.1.attention.out_proj", ["blocks.1.attention.out_proj"]),
        ("*.out_proj", ["blocks.0.attention.out_proj", "blocks.1.attention.out_proj"]),
        ("blocks.?.down", ["blocks.0.down", "blocks.1.down"]),
        ("recurrent.weight_hh*", ["recurrent.weight_hh_l0"]),
        ("recurrent", ["recurrent.weight_ih_l0", "recurrent.weight_hh_l0"]),
        ("alias", ["blocks.1.up"]),
        (nn.Embedding, ["embed"]),
        (nn.MultiheadAttention, [n for n in EVERYTHING if "attention" in n]),
        (["embed", nn.GRU], ["embed", "recurrent.weight_ih_l0", "recurrent.weight_hh_l0"]),
        (("embed", "alias"), ["embed", "blocks.1.up"]),
        ({"embed"}, ["embed"]),
        ([], []),
        (None, EVERYTHING),
    ],
    ids=str,
)
def test_layers_and_exclude_take_names_globs_containers_and_types(network, pattern, expected):
    assert names(network, pattern) == expected
    check_patterns("layers", pattern, network)
    if pattern is not None:
        assert names(network, None, pattern) == [n for n in EVERYTHING if n not in expected]


def test_exclude_counts_more_than_layers(network):
    found = select(network, "blocks.0", ["*.down", nn.MultiheadAttention])
    assert [site.name for site in found.sites] == ["blocks.0.up"]
    reasons = {left.name: left.reason for left in found.left}
    assert reasons["blocks.0.down"] == "in exclude"
    assert reasons["embed"] == "not among layers"


def test_a_name_is_no_prefix_of_another_name():
    assert matches("block", ["block.up"])
    assert not matches("block", ["blocks.up"])
    assert not matches("up", ["block.up"])
    assert matches(nn.Linear, [], [nn.ReLU(), nn.Linear(1, 1)])


@pytest.mark.parametrize("pattern", ["emped", "blocks.2", "*.weight_hh_l1", nn.LSTM])
def test_a_pattern_that_matches_nothing_is_an_error(network, pattern):
    with pytest.raises(SelectionError, match="matches no layer"):
        check_patterns("layers", ["embed", pattern], network)


def test_the_error_suggests_a_name(network):
    with pytest.raises(SelectionError, match=r"exclude='emped'.*did you mean 'embed'"):
        check_patterns("exclude", "emped", network)


def test_a_pattern_of_a_module_without_layers_is_no_error(network):
    check_patterns("exclude", ["depthwise", "blocks.0.norm", nn.LayerNorm, "token"], network)


@pytest.mark.parametrize("name", list(LAYERS))
def test_the_root_may_be_the_layer(name):
    root, _ = layer(name)
    found = select(root)
    assert found.sites
    assert not found.left
    for site in found.sites:
        assert names(root, site.name) == [site.name]
        assert site.name not in names(root, None, site.name)
        assert site.slot.read().dim() >= 3
        assert site.slot.shape[0] == site.slot.groups
    assert names(root, type(root)) == [site.name for site in found.sites]


@pytest.mark.parametrize("name", list(LAYERS))
def test_reading_follows_the_parameter_and_carries_its_gradient(name):
    root, _ = layer(name)
    for site in select(root).sites:
        site.slot.read().sum().backward()
        value = site.slot.read().detach().clone()
        assert any(p.grad is not None for p in site.slot.parameters)
        with torch.no_grad():
            for parameter in site.slot.parameters:
                parameter.mul_(2)
        assert torch.equal(site.slot.read(), 2 * value)


def test_no_layer_is_of_two_kinds():
    for name in LAYERS:
        root, _ = layer(name)
        assert [kind.matches(root) for kind in layer_kinds().values()].count(True) == 1
        assert kind_of(root).matches(root)
    assert kind_of(nn.ReLU()) is None
    assert kind_of(nn.Sequential()) is None


def test_the_type_of_a_parametrized_layer_is_the_one_before():
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(8, 8)))
    (site,) = select(model).sites
    assert site.kind == "Linear"
    assert names(model, nn.Linear) == ["0"]
    assert site.slot.size == 8 * 8 + 8


def test_tied_layers_are_one_site_with_all_their_names():
    model = nn.ModuleDict({"a": nn.Embedding(20, 8), "b": nn.Linear(8, 20, bias=False)})
    model["b"].weight = model["a"].weight
    (site,) = select(model).sites
    assert site.users == [("a", ""), ("b", "")]
    assert site.modules == [model["a"], model["b"]]
    assert set(site.names) == {"a", "a.weight", "b", "b.weight"}


def test_a_model_with_nothing_to_compress_says_why():
    with pytest.raises(NoLayerError, match="0: vectors only"):
        require_sites("Me", select(nn.Sequential(nn.LayerNorm(4))))
    with pytest.raises(NoLayerError, match="the model has no parameters"):
        require_sites("Me", select(nn.Sequential(nn.ReLU())))


@pytest.mark.parametrize("value", [nn.Linear, None, torch.zeros(3), {"a": 1}])
def test_what_is_no_module_is_refused(value):
    with pytest.raises(ModelTypeError, match=r"Me takes a torch\.nn\.Module instance"):
        check_model("Me", value)


def test_lazy_layers_are_left_with_the_reason():
    model = nn.Sequential(nn.LazyConv2d(8, 3), nn.LazyBatchNorm2d(), nn.LazyLinear(4))
    found = select(model)
    assert not found.sites
    assert {left.name for left in found.left} == {"0", "1", "2"}
    assert all("run one batch" in left.reason for left in found.left)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_scripted_modules_are_left_with_the_reason():
    scripted = torch.jit.script(nn.Sequential(nn.Linear(8, 8)))
    found = select(nn.ModuleList([scripted, nn.Linear(8, 8)]))
    assert [site.name for site in found.sites] == ["1"]
    (left,) = found.left
    assert left.name == "0"
    assert left.size == 72
    assert "TorchScript" in left.reason
    with pytest.raises(NoLayerError, match="TorchScript"):
        SVDCompressor().fit(scripted)


def test_traced_graphs_are_compressed():
    model = torch.fx.symbolic_trace(nn.Sequential(nn.Linear(16, 16), nn.ReLU()))
    small = SVDCompressor(rank=2).fit_transform(model)
    assert small(torch.zeros(1, 16)).shape == (1, 16)
    assert count_parameters(small) == 2 * 32 + 16


# --- penalties over a model's weights ---------------------------------------------------


def test_penalty_counts_tied_and_repeated_weights_once_and_frozen_ones_not():
    shared = seeded(lambda: nn.Linear(8, 8))
    tied = nn.Linear(8, 8)
    tied.weight = shared.weight
    frozen = nn.Linear(8, 8).requires_grad_(False)
    alone = NuclearNorm(weight=1.0)(nn.Sequential(shared))
    together = NuclearNorm(weight=1.0)(nn.Sequential(shared, tied, shared, frozen))
    assert torch.allclose(alone, together)
    assert torch.allclose(alone, torch.linalg.matrix_norm(shared.weight, "nuc"), rtol=1e-4)


def test_penalty_of_a_grouped_layer_is_the_sum_over_its_groups():
    conv = seeded(lambda: nn.Conv1d(8, 8, 1, groups=2))
    expected = sum(torch.linalg.matrix_norm(w[..., 0], "nuc") for w in conv.weight.chunk(2))
    assert torch.allclose(NuclearNorm(weight=1.0)(nn.Sequential(conv)), expected, rtol=1e-4)


def test_penalty_reaches_parameters_behind_a_parametrization():
    model = nn.Sequential(parametrizations.weight_norm(seeded(lambda: nn.Linear(8, 8))))
    NuclearNorm(weight=1.0)(model).backward()
    stored = model[0].parametrizations.weight
    assert stored.original0.grad.abs().sum() > 0
    assert stored.original1.grad is not None


@pytest.mark.parametrize("weight", [-1.0, float("nan"), float("inf")])
def test_penalty_with_a_bad_strength_is_an_error(weight):
    with pytest.raises(ValueError, match="weight of NuclearNorm"):
        NuclearNorm(weight=weight)(nn.Sequential(nn.Linear(4, 4)))


def test_penalty_of_a_model_that_is_frozen_is_zero():
    assert float(NuclearNorm()(nn.Sequential(nn.Linear(4, 4)).requires_grad_(False))) == 0.0
