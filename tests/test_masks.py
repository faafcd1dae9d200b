"""Masks and counts, against their definitions, over dtypes and memory layouts."""

from __future__ import annotations

import pytest
import torch
from models import random

from skcompress.masks import masked, n_nonzero

FLOATS = [torch.float16, torch.bfloat16, torch.float32, torch.float64]


@pytest.mark.parametrize("dtype", FLOATS, ids=str)
def test_against_their_definitions(dtype):
    whole = random(30, 20, 3).to(dtype)
    whole[torch.rand(whole.shape, generator=torch.Generator().manual_seed(0)) < 0.4] = 0
    whole[0, 0] = -0.0
    layouts = (whole, whole.transpose(0, 2), whole[::2, :, 1], whole[:0], whole[3, 4, 2],
               torch.nn.Parameter(whole), whole.expand(2, 30, 20, 3))  # fmt: skip
    for values in layouts:
        kept = torch.rand(values.shape, generator=torch.Generator().manual_seed(1)) < 0.5
        assert n_nonzero(values) == int((values != 0).sum())
        found = masked(values.detach(), kept)
        assert found.dtype == dtype
        assert torch.equal(found, torch.where(kept, values, torch.zeros_like(values)))


def test_a_mask_of_any_layout():
    values, kept = random(8, 6), (random(6, 8, seed=1) > 0).T
    assert torch.equal(masked(values, kept), values * kept)
