"""For every kind of layer: y = W x at every position, so that moments of y follow from x's."""

from __future__ import annotations

import pytest
import torch
from models import LAYERS, layer, random, seeded
from statistics_cases import Listed, assert_moments, site, statistics
from torch import nn

CONVOLUTIONS = {
    "one axis, same": lambda: nn.Conv1d(4, 6, 4, padding="same"),
    "one axis, circular and grouped": lambda: nn.Conv1d(
        4, 6, 5, groups=2, padding="same", padding_mode="circular"
    ),
    "stride and dilation": lambda: nn.Conv2d(4, 6, (3, 2), stride=(2, 1), dilation=(1, 2)),
    "reflect": lambda: nn.Conv2d(4, 6, 3, padding=(1, 2), padding_mode="reflect"),
    "replicate, stride": lambda: nn.Conv2d(4, 6, 3, 3, padding=2, padding_mode="replicate"),
    "same, even kernel, dilated": lambda: nn.Conv2d(4, 6, (4, 2), padding="same", dilation=2),
    "valid, groups": lambda: nn.Conv2d(4, 6, 3, padding="valid", groups=2, bias=False),
    "three axes": lambda: nn.Conv3d(4, 6, (1, 3, 2), stride=(1, 2, 1), padding=1, groups=2),
    "transposed, one axis": lambda: nn.ConvTranspose1d(4, 6, 5, stride=3, padding=1),
    "transposed, groups": lambda: nn.ConvTranspose2d(
        4, 6, (3, 2), stride=2, padding=(2, 0), output_padding=(1, 0), groups=2
    ),
    "transposed, cropped and dilated": lambda: nn.ConvTranspose2d(4, 6, 2, padding=3, dilation=3),
    "transposed, three axes": lambda: nn.ConvTranspose3d(4, 6, (2, 3, 1), stride=(2, 1, 2)),
}


def axes(conv) -> int:
    return len(conv.kernel_size)


def check_outputs(found, weight, outputs, bias, dtype):
    """E[y] = W E[x] and E[y y^T] = W E[x x^T] W^T, y (batch, channels, *positions)."""
    w = weight.detach().double().flatten(2)
    y = outputs.detach().double()
    y = y.movedim(1, -1).reshape(-1, y.shape[1])
    if bias is not None:
        y = y - bias.detach().double()
    y = y.unflatten(1, (len(w), -1)).transpose(0, 1)  # groups, positions, out
    assert found.moments.count.tolist() == [y.shape[1]] * len(w)
    tolerance = 1e-10 if dtype == torch.float64 else 1e-4
    second = y.mT @ y / y.shape[1]
    mean = torch.einsum("gon,gn->go", w, found.moments.mean)
    assert (mean - y.mean(1)).norm() <= tolerance * second.diagonal(dim1=1, dim2=2).sum().sqrt()
    assert (w @ found.moments.gram @ w.mT - second).norm() <= tolerance * second.norm()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("name", CONVOLUTIONS)
def test_convolutions(name, dtype):
    conv = seeded(CONVOLUTIONS[name]).to(dtype)
    x = random(3, 4, *(9, 8, 7)[: axes(conv)], dtype=dtype)
    found = statistics(conv, [x[:1], x[1:]])["(model)"]
    weight = site(conv, "(model)").slot.read()
    check_outputs(found, weight, conv(x), conv.bias, dtype)


@pytest.mark.parametrize("name", ["convolution", "grouped convolution", "transposed convolution"])
def test_convolutions_in_other_memory_formats_and_without_a_batch_axis(name):
    conv, (x,) = layer(name, torch.float32)
    x = x[:1]
    expected = statistics(conv, [x])["(model)"].moments
    last = x.movedim(1, -1).contiguous().movedim(-1, 1)
    wide = torch.cat([x, x], dim=-1)[..., : x.shape[-1]]
    for same in (last, wide, x[0]):
        found = statistics(conv, [same])["(model)"].moments
        torch.testing.assert_close(found.gram, expected.gram)
        assert torch.equal(found.count, expected.count)


def test_a_transposed_convolution_called_with_an_output_size():
    conv = seeded(lambda: nn.ConvTranspose2d(4, 6, 3, stride=2, padding=1)).double()
    x = random(2, 4, 5, 4)
    data = Listed(conv, [(x, [10, 7])])
    found = statistics(conv, data)["(model)"]
    weight = site(conv, "(model)").slot.read()
    check_outputs(found, weight, conv(x, [10, 7]), conv.bias, torch.float64)


@pytest.mark.parametrize("name", ["linear", "linear without bias", "conv1d of transformers"])
@pytest.mark.parametrize("lead", [(), (1,), (5,), (2, 3), (2, 3, 4)], ids=str)
def test_linear_layers_of_any_leading_axes(name, lead):
    linear, _ = layer(name, torch.float64)
    x = random(*lead, 20)
    found = statistics(linear, [x])["(model)"]
    weight = site(linear, "(model)").slot.read()
    y = linear(x).reshape(-1, 24)
    check_outputs(found, weight, y, linear.bias, torch.float64)


def test_embedding():
    embedding, (index,) = layer("embedding")
    found = statistics(embedding, [index, index[:1]])["(model)"]
    assert found.moments is None
    expected = torch.zeros(30, dtype=torch.int64)
    for row in [*index.flatten().tolist(), *index[0].tolist()]:
        expected[row] += 1
    assert torch.equal(found.lookups, expected)


def test_attention():
    attention, (q, k, v) = layer("attention")
    found = statistics(attention, Listed(attention, [(q, k, v)]))
    for name, x in (("q_proj", q), ("k_proj", k), ("v_proj", v)):
        assert_moments(found[name], x.flatten(0, 1), tolerance=1e-10)
    y = attention(q, k, v)[0].reshape(-1, 16)
    weight = attention.out_proj.weight[None]
    check_outputs(found["out_proj"], weight, y, attention.out_proj.bias, torch.float64)


@pytest.mark.parametrize(
    "settings",
    [{"batch_first": True}, {"add_bias_kv": True, "add_zero_attn": True}, {"kdim": 16, "vdim": 12}],
    ids=str,
)
def test_attention_with_a_padding_mask(settings):
    attention = seeded(lambda: nn.MultiheadAttention(16, 4, **settings)).double().eval()
    shape = (3, 5) if settings.get("batch_first") else (5, 3)
    q = random(*shape, 16)
    k = q if "kdim" not in settings else random(*shape, 16, seed=2)
    v = random(*shape, settings.get("vdim", 16), seed=3)
    padding = torch.arange(5) >= torch.tensor([5, 2, 4])[:, None]
    found = statistics(attention, Listed(attention, [(q, k, v, padding)]))
    keep = ~padding if settings.get("batch_first") else ~padding.mT
    assert_moments(found["k_proj"], k[keep], tolerance=1e-10)
    assert_moments(found["v_proj"], v[keep], tolerance=1e-10)
    everywhere = torch.ones_like(keep)
    asked = keep if k is q else everywhere  # of other keys the mask says nothing about queries
    assert_moments(found["q_proj"], q[asked], tolerance=1e-10)
    y = attention(q, k, v, key_padding_mask=padding)[0][asked]
    weight = attention.out_proj.weight[None]
    check_outputs(found["out_proj"], weight, y, attention.out_proj.bias, torch.float64)


def test_experts():
    experts, (hidden, index, weights) = layer("experts")
    found = statistics(experts, Listed(experts, [(hidden, index, weights)] * 2))
    for expert in range(3):
        x = hidden[(index == expert).any(1)]
        assert_moments(found["gate_up_proj"], x.repeat(2, 1), expert)
        inner = experts._apply_gate(x @ experts.gate_up_proj[expert].mT)
        assert_moments(found["down_proj"], inner.repeat(2, 1), expert)


def test_an_expert_without_tokens_has_no_moments():
    experts, (hidden, index, weights) = layer("experts")
    idle = index.where(index != 1, torch.tensor(0))
    moments = statistics(experts, Listed(experts, [(hidden, idle, weights)]))["down_proj"].moments
    assert moments.count[1] == moments.used[1] == 0
    assert not moments.gram[1].any()
    assert moments.gram[0].any()


def test_every_kind_of_layer_is_covered_at_full_precision():
    """float32 sums against float64 ones, for every slot of every kind."""
    for name in LAYERS:
        single, double = layer(name, torch.float32), layer(name, torch.float64)
        found, exact = (statistics(m, Listed(m, [args])) for m, args in (single, double))
        slots = {s.name for s in map(lambda n, m=double[0]: site(m, n), exact)}
        assert set(found) == set(exact) == slots
        for key, value in exact.items():
            if value.moments is None:
                assert torch.equal(found[key].lookups, value.lookups)
            else:
                error = (found[key].moments.gram - value.moments.gram).norm()
                assert error <= 1e-5 * value.moments.gram.norm(), f"{name}: {key}"
                assert found[key].moments.gram.dtype == torch.float64


def test_tokens_at_padding_do_not_count_for_their_experts():
    class Block(nn.Module):
        def __init__(self, experts):
            super().__init__()
            self.experts = experts

        def forward(self, x, index, weights, attention_mask):
            return self.experts(x.flatten(0, 1), index, weights)

    experts, (_, _, weights) = layer("experts")
    x = random(2, 5, 12)
    index = torch.tensor([[0, 1], [2, 0], [1, 2], [2, 1], [0, 2]]).repeat(2, 1)
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    batch = {"x": x, "index": index, "weights": weights.repeat(2, 1), "attention_mask": mask}
    found = statistics(Block(experts), [batch])
    for expert in range(3):
        routed = (index == expert).any(1) & (mask.flatten() == 1)
        assert_moments(found["experts.gate_up_proj"], x.flatten(0, 1)[routed], expert)
