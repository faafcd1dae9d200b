"""Budgets in other units than parameters: what they promise is what the result has."""

from __future__ import annotations

import re
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from models import seeded
from torch import nn

from skcompress import SVDCompressor, TuckerCompressor, count_bytes, count_parameters
from skcompress.errors import BudgetError

PLUGINS = Path(__file__).parents[2] / "docs" / "plugins.md"


def network():
    return nn.Sequential(
        nn.Conv2d(3, 24, 3), nn.ReLU(), nn.Conv2d(24, 32, 3, groups=2), nn.Flatten(),
        nn.Linear(32 * 16, 40), nn.Linear(40, 10),
    )  # fmt: skip


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("pivot", [False, True])
@pytest.mark.parametrize("kind", [SVDCompressor, TuckerCompressor])
def test_a_budget_of_bytes_is_kept(kind, pivot, dtype):
    model = seeded(network).to(dtype)
    compressor = kind(0.5, cost="bytes", pivot=pivot)
    small = compressor.fit_transform(model)
    assert 0.4 * count_bytes(model) < count_bytes(small) <= 0.5 * count_bytes(model)
    assert count_parameters(small) == compressor.n_parameters_out_


def test_positions_of_pivots_take_bytes():
    model = seeded(lambda: nn.Sequential(nn.Linear(64, 64, bias=False))).half()
    bought = [SVDCompressor(0.6, cost=cost, pivot=True).fit(model).ranks_["0"] for cost in
              ("parameters", "bytes")]  # fmt: skip
    assert bought[1] < bought[0]


def test_what_cannot_be_reached_is_said_in_bytes():
    with pytest.raises(BudgetError, match="of its bytes") as caught:
        SVDCompressor(0.001, cost="bytes").fit(seeded(network))
    smallest = caught.value.smallest
    SVDCompressor(smallest, cost="bytes").fit(seeded(network))


def test_the_example_of_the_page_runs():
    page = PLUGINS.read_text()
    section = page[page.index("## A cost") : page.index("## A compressor of your own")]
    (block,) = re.findall(r"```python\n(.*?)```", section, re.DOTALL)
    subprocess.run([sys.executable, "-W", "ignore", "-c", block], check=True)
