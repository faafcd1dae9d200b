"""Tensors that can be trained by nobody, or hold no numbers yet, beside those worked on."""

from __future__ import annotations

import pytest
import torch
from models import seeded
from torch import nn

from skcompress import MagnitudePruner, Pruner, SVDCompressor


@pytest.mark.parametrize(
    "compressor",
    [SVDCompressor(rank=4, metric="fisher"), MagnitudePruner(0.5), Pruner("taylor", sparsity=0.5)],
    ids=["svd", "magnitude", "taylor"],
)
@pytest.mark.parametrize("what", ["fit", "data", "model"])
def test_what_comes_out_of_inference_mode_can_be_trained(compressor, what):
    def made(inside: str, build):
        with torch.inference_mode(what == inside):
            return seeded(build)

    model = made("model", lambda: nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 5)))
    data = made("data", lambda: torch.randn(60, 20))
    with torch.inference_mode(what == "fit"):
        small = compressor.fit_transform(model, data)
    small(torch.ones(2, 20)).sum().backward()
    assert all(p.grad is not None for p in small.parameters())


def test_layers_that_are_not_to_be_pruned_may_hold_anything():
    MagnitudePruner(0.5).fit(nn.Sequential(nn.LazyLinear(4), nn.Linear(40, 40)))
    model = nn.Sequential(nn.Linear(20, 64), nn.Linear(64, 64))
    model[1].weight = nn.Parameter(model[1].weight.to(torch.float8_e4m3fn), requires_grad=False)
    MagnitudePruner(0.5, exclude="1").fit(model)
