"""The windows of its input that a convolution multiplies by its weight."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..protocols import Patches


def patches(conv: Any, x: Tensor) -> Patches:
    """Windows of a convolution's input x (batch, in, *size), or without the batch."""
    x = _batched(conv, x)
    mode = "constant" if conv.padding_mode == "zeros" else conv.padding_mode
    # torch's own list of what is added before and after each axis, "same" included.
    padded = F.pad(x, conv._reversed_padding_repeated_twice, mode=mode)
    return Patches(_windows(padded, conv, conv.stride))


def transposed_patches(conv: Any, x: Tensor, output_size: list[int] | None) -> Patches:
    """Windows of a transposed convolution: those of its input spread out by the stride.

    y[q] = sum over k of u[q + padding - dilation k] W[k], where u[stride p] = x[p] and
    all else in u is zero: the kernel runs backwards.
    """
    x = _batched(conv, x)
    n = len(conv.kernel_size)
    extra = conv._output_padding(
        x, output_size, conv.stride, conv.padding, conv.kernel_size, n, conv.dilation
    )
    sizes = [(size - 1) * s + 1 for size, s in zip(x.shape[2:], conv.stride, strict=True)]
    spread = x.new_zeros((*x.shape[:2], *sizes))
    places = (..., *(slice(None, None, s) for s in conv.stride))
    spread[places] = x
    margins: list[int] = []
    for k, d, p, e in zip(conv.kernel_size, conv.dilation, conv.padding, extra, strict=True):
        reach = d * (k - 1) - p
        margins = [reach, reach + e, *margins]  # F.pad lists the last axis first
    return Patches(_windows(F.pad(spread, margins), conv, (1,) * n), flip=True)


def pixels(conv: Any, y: Tensor) -> Patches:
    """Columns of a convolution's output y (batch, out, *size), or without the batch."""
    kernel = (1,) * len(conv.kernel_size)
    y = torch.unflatten(_batched(conv, y), 1, (conv.groups, -1))
    return Patches(y.reshape(*y.shape, *kernel))


def _batched(conv: Any, x: Tensor) -> Tensor:
    return x[None] if x.dim() == len(conv.kernel_size) + 1 else x


def _windows(padded: Tensor, conv: Any, stride: tuple[int, ...]) -> Tensor:
    """View (batch, groups, in, *out, *kernel) of a padded input (batch, channels, *size)."""
    view = padded
    for axis, (k, d, s) in enumerate(zip(conv.kernel_size, conv.dilation, stride, strict=True)):
        view = view.unfold(2 + axis, d * (k - 1) + 1, s)[..., ::d]
    return torch.unflatten(view, 1, (conv.groups, -1))
