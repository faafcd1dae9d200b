"""Which matrix a weight is unfolded to, and back: one place for every method that asks.

"output" : (out, in * kernel)
"input" : (out * kernel, in)
"spatial" : (out * other kernel axes, in * first kernel axis)

Without a kernel all three are the weight itself, as (out, in).
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor

SCHEMES = ("output", "input", "spatial")


def separates(shape: Sequence[int]) -> bool:
    """Whether a weight of `shape` has two kernel axes for "spatial" to take apart.

    >>> separates((8, 4, 3, 3)), separates((8, 4, 1, 3)), separates((8, 4))
    (True, False, False)
    """
    return sum(size > 1 for size in shape[2:]) >= 2 and shape[2] > 1


def fitting(scheme: str, shape: Sequence[int]) -> str:
    """Give `scheme`, or "output" for a weight that has no two kernel axes to separate."""
    return "output" if scheme == "spatial" and not separates(shape) else scheme


def unfold(weight: Tensor, scheme: str) -> Tensor:
    """Unfold `weight` of shape (out, in, *kernel) to a matrix; a view where that is possible.

    >>> unfold(torch.zeros(8, 4, 3, 5), "spatial").shape
    torch.Size([40, 12])
    """
    scheme = fitting(scheme, weight.shape)
    if scheme == "output":
        return weight.reshape(weight.shape[0], -1)
    if scheme == "input":
        return weight.movedim(1, -1).reshape(-1, weight.shape[1])
    inputs, first = weight.shape[1:3]
    return weight.movedim((1, 2), (-2, -1)).reshape(-1, inputs * first)


def fold(matrix: Tensor, scheme: str, shape: Sequence[int]) -> Tensor:
    """Undo `unfold` of a weight of `shape`.

    >>> weight = torch.randn(8, 4, 3, 5)
    >>> torch.equal(fold(unfold(weight, "spatial"), "spatial", weight.shape), weight)
    True
    """
    scheme = fitting(scheme, shape)
    out, inputs, *kernel = shape
    if scheme == "output":
        return matrix.reshape(tuple(shape))
    if scheme == "input":
        return matrix.reshape(out, *kernel, inputs).movedim(-1, 1)
    return matrix.reshape(out, *kernel[1:], inputs, kernel[0]).movedim((-2, -1), (1, 2))
