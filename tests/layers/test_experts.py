from __future__ import annotations

import pytest
import torch
from models import Experts, distance, exact, layer, random, seeded
from torch import Tensor, nn

from skcompress import SVDCompressor, count_parameters
from skcompress.layers.experts import FactorizedExperts


def reason(module: nn.Module) -> str:
    compressor = exact()
    small = compressor.fit_transform(nn.ModuleList([module, nn.Linear(16, 16)]))
    assert type(small[0]) is type(module)
    assert count_parameters(small) == compressor.n_parameters_out_
    return compressor.plan_["0"].reason


def test_every_expert_is_factorised_by_itself():
    dense, arguments = layer("experts")
    compressor = SVDCompressor(rank=3)
    dense = seeded(Experts).double()
    small = compressor.fit_transform(dense)
    assert isinstance(small, FactorizedExperts)
    assert compressor.plan_["gate_up_proj"].groups == 3
    for name in ("gate_up_proj", "down_proj"):
        weight = getattr(dense, name).detach()
        left, values, right = torch.linalg.svd(weight, full_matrices=False)
        best = (left[..., :3] * values[:, None, :3]) @ right[:, :3]
        assert distance(getattr(small, name), best) < 1e-12
    reported = Experts().double()
    with torch.no_grad():
        reported.gate_up_proj.copy_(small.gate_up_proj)
        reported.down_proj.copy_(small.down_proj)
    assert distance(small(*arguments), reported(*arguments)) < 1e-12


def test_tokens_without_expert_and_experts_without_token():
    dense, (x, _, weights) = layer("experts")
    small = exact().fit_transform(dense)
    index = torch.tensor([[0, 3], [3, 3], [0, 3], [0, 3], [3, 0]])  # 3: no such expert
    assert distance(small(x, index, weights), dense(x, index, weights)) < 1e-12
    small(x, index, weights).sum().backward()
    assert all(p.grad is not None for p in small.parameters())


@pytest.mark.parametrize("name", ["gate_up_proj", "down_proj"])
def test_only_one_projection(name):
    dense, arguments = layer("experts")
    compressor = exact(layers=name)
    small = compressor.fit_transform(dense)
    assert list(compressor.ranks_) == [name]
    assert count_parameters(small) == compressor.n_parameters_out_
    assert distance(small(*arguments), dense(*arguments)) < 1e-12
    back = compressor.inverse_transform(small)
    assert type(back) is Experts
    assert distance(back(*arguments), dense(*arguments)) < 1e-12


def test_experts_that_share_a_weight_stay_shared():
    model = nn.ModuleList([layer("experts")[0], layer("experts")[0]])
    model[1].down_proj = model[0].down_proj
    compressor = exact()
    small = compressor.fit_transform(model)
    assert set(compressor.ranks_) == {"0.gate_up_proj", "1.gate_up_proj"}
    assert count_parameters(small) == compressor.n_parameters_out_
    back = compressor.inverse_transform(small)
    assert back[0].down_proj is back[1].down_proj


def test_a_gate_that_reads_attributes_and_modules_of_its_own():
    class Limited(Experts):
        def __init__(self):
            super().__init__()
            self.limit = 0.5
            self.act_fn = nn.Sequential(nn.SiLU(), nn.Dropout(0.5))

        def _apply_gate(self, gate_up: Tensor) -> Tensor:
            return super()._apply_gate(gate_up).clamp(max=self.limit)

    _, arguments = layer("experts")
    dense = seeded(Limited).double().eval()
    small = SVDCompressor(rank=8).fit_transform(dense)
    assert small.limit == 0.5
    assert not small.act_fn[1].training
    assert small.act_fn is not dense.act_fn
    back = SVDCompressor().inverse_transform(small)
    assert distance(small(*arguments), back(*arguments)) < 1e-12


class _Biased(Experts):
    def __init__(self):
        super().__init__()
        self.down_proj_bias = nn.Parameter(torch.zeros(3, 12))


class _WithLayer(Experts):
    def __init__(self):
        super().__init__()
        self.shared = nn.Linear(12, 12)


class _Interleaved(Experts):
    is_transposed = True


class _OtherArguments(Experts):
    def forward(self, x: Tensor) -> Tensor:
        return x


@pytest.mark.parametrize(
    ("cls", "why"),
    [
        (_Biased, "down_proj_bias"),
        (_WithLayer, "shared"),
        (_Interleaved, "layout"),
        (_OtherArguments, "layout"),
    ],
)
def test_other_layouts_are_left_with_the_reason(cls, why):
    assert why in reason(cls())


def test_layers_inside_refused_experts_are_compressed():
    class WithLayer(_WithLayer):
        pass

    compressor = exact()
    compressor.fit(nn.ModuleList([WithLayer()]))
    assert "0.shared" in compressor.ranks_


def test_unknown_three_dimensional_parameter_is_reported():
    class Mixture(nn.Module):
        def __init__(self):
            super().__init__()
            self.kernels = nn.Parameter(torch.randn(4, 8, 8))
            self.scale = nn.Parameter(torch.ones(8))

        def forward(self, x):
            return torch.einsum("bi,eio->beo", x, self.kernels) * self.scale

    why = reason(Mixture())
    assert "kernels (4, 8, 8)" in why
    assert "scale" not in why
    assert random(1, 8).shape == (1, 8)
