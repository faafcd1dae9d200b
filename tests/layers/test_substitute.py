"""What every stand-in keeps of the layer that it replaces."""

from __future__ import annotations

import copy
import io
import pickle

import pytest
import torch
from models import LAYERS, RANK, distance, exact, factorized, layer, random, seeded
from pairwise import pairwise
from torch import nn

from skcompress import SVDCompressor, TuckerCompressor, count_parameters
from skcompress.errors import ModelCopyError

TOLERANCE = 1e-12


STORED = {"plain": False, "pivot": True}


def every_layer(test):
    """Every kind of layer; stored as ever, and with pivots where it takes them."""
    return pytest.mark.parametrize("name", list(LAYERS))(
        pytest.mark.parametrize("pivot", STORED.values(), ids=STORED)(test)
    )


@pairwise(name=list(LAYERS), pivot=STORED, cls={"svd": SVDCompressor, "tucker": TuckerCompressor})
def test_computes_the_same_function_with_fewer_numbers(name, pivot, cls):
    dense, arguments = layer(name)
    compressor = cls(rank=RANK, pivot=pivot)
    small = compressor.fit_transform(dense)
    assert list(factorized(small)) == [""]
    assert all(row.reason is None for row in compressor.plan_)
    assert count_parameters(small) == compressor.n_parameters_out_ < count_parameters(dense)
    assert distance(small(*arguments), dense(*arguments)) < TOLERANCE


@every_layer
def test_inverse_transform_gives_the_original_class_and_function(name, pivot):
    dense, arguments = layer(name)
    compressor = exact(pivot=pivot)
    back = compressor.inverse_transform(compressor.fit_transform(dense))
    assert type(back) is type(dense)
    assert repr(back) == repr(dense)
    assert [(n, p.shape) for n, p in back.named_parameters()] == [
        (n, p.shape) for n, p in dense.named_parameters()
    ]
    assert set(vars(back)) == set(vars(dense))
    assert distance(back(*arguments), dense(*arguments)) < TOLERANCE
    assert distance(dict(back.state_dict()), dict(dense.state_dict())) < TOLERANCE


@every_layer
def test_every_parameter_is_trained(name, pivot):
    dense, arguments = layer(name)
    small = exact(pivot=pivot).fit_transform(dense.train())
    result = small(*arguments)
    (result[0] if isinstance(result, tuple) else result).square().sum().backward()
    for key, parameter in small.named_parameters():
        assert parameter.grad is not None, key
        assert torch.isfinite(parameter.grad).all(), key
    assert any(p.grad.abs().sum() > 0 for p in small.parameters())
    assert all(p.grad is None for p in dense.parameters())


@every_layer
def test_gradients_reach_the_input_as_through_the_dense_layer(name, pivot):
    dense, arguments = layer(name)
    if not arguments[0].is_floating_point():
        pytest.skip("its input has no gradient")
    small = exact(pivot=pivot).fit_transform(dense)
    gradients = []
    for module in (small, dense):
        leaf = arguments[0].clone().requires_grad_()
        result = module(leaf, *arguments[1:])
        (result[0] if isinstance(result, tuple) else result).square().sum().backward()
        gradients.append(leaf.grad)
    assert distance(*gradients) < 1e-10


@pairwise(
    name=list(LAYERS),
    pivot=STORED,
    dtype=[torch.float16, torch.bfloat16, torch.float32, torch.float64],
)
def test_keeps_the_dtype(name, pivot, dtype):
    dense, arguments = layer(name, dtype)
    compressor = exact(pivot=pivot)
    small = compressor.fit_transform(dense)
    assert {p.dtype for p in small.parameters()} == {dtype}
    assert {p.dtype for p in compressor.inverse_transform(small).parameters()} == {dtype}
    # Rounding of the weights that the factors have to reproduce, and of the factors.
    tolerance = max(30 * torch.finfo(dtype).eps, TOLERANCE)
    assert distance(small(*arguments), dense(*arguments)) < tolerance


@every_layer
def test_frozen_weights_stay_frozen(name, pivot):
    dense, _ = layer(name)
    dense.requires_grad_(False)
    compressor = exact(pivot=pivot)
    small = compressor.fit_transform(dense)
    assert not any(p.requires_grad for p in small.parameters())
    assert not any(p.requires_grad for p in compressor.inverse_transform(small).parameters())


@every_layer
def test_frozen_biases_beside_trained_weights(name, pivot):
    dense, _ = layer(name)
    for key, parameter in dense.named_parameters():
        parameter.requires_grad_("bias" not in key)
    compressor = exact(pivot=pivot)
    small = compressor.fit_transform(dense)
    for model in (small, compressor.inverse_transform(small)):
        for key, parameter in model.named_parameters():
            assert parameter.requires_grad == ("bias" not in key), key


@pairwise(name=list(LAYERS), pivot=STORED, training=[True, False])
def test_keeps_the_mode(name, pivot, training):
    model = nn.Sequential(layer(name)[0], nn.Dropout()).train(not training)
    model[0].train(training)
    compressor = exact(pivot=pivot)
    small = compressor.fit_transform(model)
    back = compressor.inverse_transform(small)
    for result in (small, back):
        assert {m.training for m in result[0].modules()} == {training}
        assert result.training == result[1].training == (not training)


@every_layer
def test_survives_pickle_torch_save_and_deepcopy(name, pivot):
    dense, arguments = layer(name)
    small = exact(pivot=pivot).fit_transform(dense)
    file = io.BytesIO()
    torch.save(small, file)
    file.seek(0)
    copies = [
        copy.deepcopy(small),
        pickle.loads(pickle.dumps(small)),
        torch.load(file, weights_only=False),
    ]
    for other in copies:
        assert distance(other(*arguments), small(*arguments)) == 0.0
        assert not {p.data_ptr() for p in other.parameters()} & {
            p.data_ptr() for p in small.parameters()
        }
        dense_again = SVDCompressor().inverse_transform(other)
        assert type(dense_again) is type(dense)


@every_layer
def test_parameters_can_be_swapped_for_one_call(name, pivot):
    dense, arguments = layer(name)
    small = exact(pivot=pivot).fit_transform(dense)
    larger = {key: 1.5 * parameter.detach() for key, parameter in small.named_parameters()}
    swapped = torch.func.functional_call(small, larger, arguments)
    small.load_state_dict({**small.state_dict(), **larger})
    assert distance(swapped, small(*arguments)) < TOLERANCE


@every_layer
def test_transform_of_a_model_on_the_meta_device_takes_the_state(name, pivot):
    dense, arguments = layer(name)
    compressor = exact(pivot=pivot)
    small = compressor.fit_transform(dense)
    hollow = compressor.transform(copy.deepcopy(dense).to("meta"))
    assert all(p.is_meta for p in hollow.parameters())
    assert [(n, p.shape, p.dtype) for n, p in hollow.named_parameters()] == [
        (n, p.shape, p.dtype) for n, p in small.named_parameters()
    ]
    filled = hollow.to_empty(device="cpu")
    filled.load_state_dict(small.state_dict())
    assert distance(filled(*arguments), small(*arguments)) == 0.0


@every_layer
def test_draws_no_random_numbers_and_leaves_the_layer_alone(name, pivot):
    dense, _ = layer(name)
    state = {key: value.clone() for key, value in dense.state_dict().items()}
    before = torch.random.get_rng_state()
    compressor = exact(pivot=pivot)
    compressor.inverse_transform(compressor.fit_transform(dense))
    assert torch.equal(before, torch.random.get_rng_state())
    assert all(torch.equal(value, dense.state_dict()[key]) for key, value in state.items())


@every_layer
def test_non_contiguous_weights(name, pivot):
    dense, arguments = layer(name)
    for parameter in dense.parameters():
        if parameter.dim() > 1:
            parameter.data = parameter.data.mT.contiguous().mT
    weights = [p for p in dense.parameters() if p.dim() > 1 and 1 not in p.shape]
    assert not any(p.is_contiguous() for p in weights)
    small = exact(pivot=pivot).fit_transform(dense)
    assert all(p.is_contiguous() for p in small.parameters() if p.dim() > 1)
    assert distance(small(*arguments), dense(*arguments)) < TOLERANCE


@every_layer
def test_keeps_attributes_of_the_user(name, pivot):
    dense, _ = layer(name)
    dense.note = ["mine"]
    compressor = exact(pivot=pivot)
    small = compressor.fit_transform(dense)
    assert small.note == ["mine"]
    assert small.note is not dense.note
    assert compressor.inverse_transform(small).note == ["mine"]


@every_layer
def test_keeps_hooks_and_leaves_them_on_the_input(name, pivot):
    dense, arguments = layer(name)
    calls = []
    handles = [
        dense.register_forward_hook(lambda *_: calls.append("after")),
        dense.register_forward_hook(
            lambda m, a, k, o: calls.append(f"after with {len(k)}"), with_kwargs=True
        ),
        dense.register_forward_pre_hook(lambda *_: calls.append("before")),
        dense.register_forward_hook(lambda *_: calls.append("always"), always_call=True),
    ]
    small = exact(pivot=pivot).fit_transform(dense)
    small(*arguments)
    expected = ["before", "after", "after with 0", "always"]
    assert calls == expected
    calls.clear()
    dense(*arguments)
    assert calls == expected
    calls.clear()
    for handle in handles:
        handle.remove()
    dense(*arguments)
    assert calls == []
    small(*arguments)
    assert calls == expected
    calls.clear()
    exact(pivot=pivot).inverse_transform(small)(*arguments)
    assert calls == expected


def test_full_backward_hooks_stay_full_backward_hooks():
    dense, (x,) = layer("linear")
    seen = []
    dense.register_full_backward_hook(lambda m, gi, go: seen.append((gi[0].shape, go[0].shape)))
    dense.register_full_backward_pre_hook(lambda m, go: seen.append(go[0].shape))
    small = exact().fit_transform(dense)
    x = x.requires_grad_()
    for module in (dense, small):
        module(x).sum().backward()
    assert len(seen) == 4
    assert seen[:2] == seen[2:]


class _Watched(nn.Module):
    """Its hooks and attributes lead back to itself, and round about to its layers."""

    def __init__(self):
        super().__init__()
        self.first = nn.Linear(16, 16)
        self.second = nn.Linear(16, 16)
        self.first.register_forward_hook(self.note)
        self.first.owner = [self]
        self.in_a_list = [self.second, self.first]
        self.n_seen = 0

    def note(self, *_):
        self.n_seen += 1

    def forward(self, x):
        for module in reversed(self.in_a_list):
            x = module(x)
        return x


def test_hooks_and_lists_that_lead_to_the_model_lead_to_the_result():
    compressor = SVDCompressor(rank=RANK)
    model = seeded(_Watched)
    small = compressor.fit_transform(model)
    assert list(factorized(small)) == ["first", "second"]
    assert small.in_a_list[0] is small.second
    assert small.in_a_list[1] is small.first
    assert small.first.owner[0] is small
    small(torch.zeros(1, 16))
    assert (small.n_seen, model.n_seen) == (1, 0)
    back = compressor.inverse_transform(small)
    back(torch.zeros(1, 16))
    assert back.in_a_list[0] is back.second
    assert (back.n_seen, small.n_seen) == (2, 1)


def test_dense_layers_are_copied_too():
    model = seeded(lambda: nn.Sequential(nn.Linear(16, 16), nn.Linear(2, 2), nn.BatchNorm1d(2)))
    small = exact(exclude="1").fit_transform(model)
    ours = {p.data_ptr() for p in (*model.parameters(), *model.buffers())}
    assert not ours & {p.data_ptr() for p in (*small.parameters(), *small.buffers())}


def test_biases_that_are_one_parameter_stay_one():
    model = seeded(lambda: nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16), nn.Linear(16, 16)))
    model[1].bias = model[2].bias = model[0].bias
    compressor = exact(exclude="2")
    small = compressor.fit_transform(model)
    assert small[0].bias is small[1].bias is small[2].bias
    assert small[0].bias is not model[0].bias
    assert count_parameters(small) == compressor.n_parameters_out_
    back = compressor.inverse_transform(small)
    assert back[0].bias is back[1].bias is back[2].bias


def test_a_module_under_two_names_is_one_module_in_the_result():
    shared = seeded(lambda: nn.Linear(16, 16))
    model = nn.ModuleDict({"a": shared, "b": nn.Sequential(nn.ReLU(), shared)})
    compressor = exact()
    small = compressor.fit_transform(model)
    assert small["a"] is small["b"][1]
    assert len(compressor.plan_) == 1
    assert count_parameters(small) == compressor.n_parameters_out_
    back = compressor.inverse_transform(small)
    assert back["a"] is back["b"][1]


def test_a_compressed_model_can_be_compressed_no_further_but_says_so():
    model = seeded(lambda: nn.Sequential(nn.Linear(16, 16), nn.Linear(16, 16)))
    once = exact(layers="0").fit_transform(model)
    compressor = exact()
    twice = compressor.fit_transform(once)
    assert compressor.plan_["0"].reason == "already factorised"
    x = random(3, 16, dtype=torch.float32)
    assert torch.equal(twice[0](x), once[0](x))
    assert count_parameters(twice) == compressor.n_parameters_out_


def test_a_model_that_cannot_be_copied_is_refused_and_untouched():
    class Locked(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(16, 16)

        def __deepcopy__(self, memo):
            raise RuntimeError("not me")

    model = seeded(Locked)
    layer_before = model.layer
    with pytest.raises(ModelCopyError, match="not me"):
        exact().fit_transform(model)
    assert model.layer is layer_before
    assert type(model.layer) is nn.Linear


@every_layer
def test_is_made_of_what_torch_exports(name, pivot):
    if name == "experts":
        pytest.skip("which tokens an expert gets depends on the data")
    dense, arguments = layer(name, torch.float32)
    small = exact(pivot=pivot).fit_transform(dense)
    program = torch.export.export(small, arguments, strict=False)
    assert distance(program.module()(*arguments), small(*arguments)) < 1e-6
