"""The arithmetic of chains, against the convolutions that they stand for."""

from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F
from models import distance, random

from skcompress.layers.chain import merge_groups, merge_stages
from skcompress.protocols import Factors, Stage
from skcompress.protocols.product import multiply_out


def test_one_factor_is_the_weight():
    weight = random(4, 3)
    assert torch.equal(multiply_out(Factors((weight,), (1,))), weight)


def test_matrices_multiply_in_the_order_of_application():
    first, second, third = random(4, 5), random(3, 4, seed=2), random(6, 3, seed=3)
    product = multiply_out(Factors((first, second, third), (1, 1, 1)))
    assert distance(product, third @ second @ first) < 1e-14


@pytest.mark.parametrize(
    ("kernels", "n_axes"),
    [
        ([(1, 1), (3, 2)], 2),
        ([(3, 1), (1, 2)], 2),
        ([(1, 2), (3, 1)], 2),
        ([(1, 1), (3, 2), (1, 1)], 2),
        ([(1,), (5,)], 1),
        ([(1, 1, 1), (1, 3, 1), (2, 1, 3), (1, 1, 1)], 3),
    ],
)
def test_chain_of_kernels_is_one_convolution(kernels, n_axes):
    conv = {1: F.conv1d, 2: F.conv2d, 3: F.conv3d}[n_axes]
    widths = [3, 4, 5, 6, 7][: len(kernels) + 1]
    tensors = tuple(
        random(out, inputs, *kernel, seed=out)
        for inputs, out, kernel in zip(widths, widths[1:], kernels, strict=False)
    )
    weight = multiply_out(Factors(tensors, (1,) * len(tensors)))
    x = random(2, 3, 7, 6, 5)[(...,) + (0,) * (3 - n_axes)]
    step_by_step = x
    for tensor in tensors:
        step_by_step = conv(step_by_step, tensor)
    assert distance(conv(x, weight), step_by_step) < 1e-13


@pytest.mark.parametrize("stage_groups", [(1, 1), (2, 1), (1, 2), (2, 2)])
@pytest.mark.parametrize("n_groups", [1, 2, 3])
def test_groups_of_the_layer_and_of_the_stages(n_groups, stage_groups):
    def part(seed):
        first = random(4, 6 // stage_groups[0], 3, seed=seed)
        second = random(8, 4 // stage_groups[1], 1, seed=seed + 10)
        return Factors((first, second), stage_groups)

    parts = [part(seed) for seed in range(n_groups)]
    merged = merge_groups(parts)
    assert merged.stages == merge_stages(parts[0].stages, n_groups)
    assert merged.groups == tuple(n_groups * g for g in stage_groups)
    x = random(2, 6 * n_groups, 9)
    step_by_step = x
    for tensor, groups in zip(merged.tensors, merged.groups, strict=True):
        step_by_step = F.conv1d(step_by_step, tensor, groups=groups)
    whole = F.conv1d(x, multiply_out(merged, n_groups), groups=n_groups)
    assert distance(whole, step_by_step) < 1e-13


def test_merged_stages_count_what_is_stored():
    stages = (Stage((4, 6, 3)), Stage((8, 4, 1)))
    assert [s.size for s in merge_stages(stages, 3)] == [3 * s.size for s in stages]
