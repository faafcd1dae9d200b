"""The largest of very many numbers, by selection: counting bit patterns instead of sorting.

Non-negative floats are ordered as the integers that their bits spell. A histogram of the upper
bits says in which bin the wanted number lies, another one of the lower bits within that bin which
it is: exact, in two passes over float32 values, at the speed of memory. Sorting the weights of a
model of a hundred million would take half a minute, and as much memory again.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import NamedTuple

import torch
from torch import Tensor

from .masks import compared
from .threads import results_side_by_side

# Bits counted in one pass.
_DIGIT = 16
# Numbers of a piece.
_PIECE = 1 << 19
# Values above which a sum is read off a histogram instead of from all of them, sorted.
_MANY = 1 << 16
# Bits of float32 that such a histogram leaves out: bins are 2^-12 of a value wide.
_BELOW = 11

Values = Callable[[], Tensor]


def numbers_kept(parts: Sequence[Values], n_kept: int) -> list[int]:
    """How many values of each part are among the `n_kept` largest of all.

    parts : each gives non-negative float values, the same at every call; it is called twice, and
        only as many parts as torch has threads are held at a time. They are compared in float32;
        of equal values those of earlier parts are taken.
    """
    if n_kept <= 0:
        return [0] * len(parts)
    found = _select([_Bits(part) for part in parts], 32, n_kept)
    missing = n_kept - sum(found.above)
    counts = []
    for above, equal in zip(found.above, found.equal, strict=True):
        taken = min(equal, missing)
        missing -= taken
        counts.append(above + taken)
    return counts


def keep_largest(values: Tensor, n_kept: int) -> Tensor:
    """Mark the `n_kept` largest of non-negative float values, as a bool tensor of their shape.

    Of values equal to the least that is kept, those marked are spread evenly over all of them.
    """
    if not 0 < n_kept < values.numel():
        return torch.full_like(values, n_kept > 0, dtype=torch.bool)
    bits = _bits(values.to(torch.promote_types(values.dtype, torch.float32)))
    found = _select([lambda: bits], 8 * bits.itemsize, n_kept)
    missing, n_equal = n_kept - found.above[0], found.equal[0]
    seen = compared(bits)
    if missing == n_equal:
        return torch.as_tensor(seen >= found.threshold).reshape(values.shape)
    kept = torch.as_tensor(seen > found.threshold)
    equal = torch.as_tensor(seen == found.threshold).nonzero()[:, 0]
    kept[equal[torch.arange(missing, device=bits.device) * n_equal // missing]] = True
    return kept.reshape(values.shape)


def relative(values: Tensor) -> Tensor:
    """Divide each of non-negative values by the sum of those that are not smaller than it.

    Gives values in [0, 1] in the same order, the largest of which is 1; of equal ones, later ones
    count as larger. Of more than 65,536 float32 values that holds of the 65,536 largest; sums of
    the others, which these are all part of, are read off a histogram with bins of 1/4096 of a
    value: those in one bin have half of it in their sum. Of a million normally distributed
    weights, squared, that is off by 2e-4 at most, of four million evenly distributed by 2e-3.
    """
    flat = values.reshape(-1)
    if not float(flat.max()) > 0:
        return torch.zeros_like(values)
    if len(flat) > _MANY and values.dtype == torch.float32:
        return _relative_by_bins(flat).reshape(values.shape)
    return _relative_in_order(flat).reshape(values.shape)


def _relative_in_order(flat: Tensor) -> Tensor:
    ordered, order = flat.sort(stable=True)
    sums = ordered.to(torch.float64).flip(0).cumsum(0).flip(0)
    shares = torch.where(ordered > 0, ordered / sums, torch.zeros_like(sums))
    result = torch.empty_like(flat)
    result[order] = shares.to(flat.dtype)
    return result


def _relative_by_bins(flat: Tensor) -> Tensor:
    bits = _bits(flat)
    first, last = (int(end) >> _BELOW for end in bits.aminmax())
    n_bins = last - first + 1
    result = torch.empty_like(flat)
    # What a piece is counted into is no larger than the piece.
    cut = [pieces(one, at_least=n_bins) for one in (flat, bits, result)]
    own = torch.zeros(n_bins, dtype=torch.float64, device=flat.device)
    for values, its_bits, _ in zip(*cut, strict=True):
        own += torch.bincount((its_bits >> _BELOW) - first, weights=values, minlength=n_bins)
    above = own.flip(0).cumsum(0).flip(0) - own
    # Upper ends of the bins.
    ends = torch.arange(first + 1, last + 2, dtype=torch.int32, device=flat.device) << _BELOW
    # Of a value alone in its bin the sum has all of it; of several, all but half of the others.
    sums = above + (own + torch.minimum(own, ends.view(torch.float32).double())) / 2
    inverse = sums.reciprocal().to(torch.float32)
    for values, its_bits, there in zip(*cut, strict=True):
        torch.mul(values, inverse.index_select(0, (its_bits >> _BELOW) - first), out=there)
    # Where few are larger a bin is much of the sum. All values of a bin are of nearly one size.
    n_above = (own / ends.view(torch.float32)).flip(0).cumsum(0).flip(0)
    exact = first + int((n_above > _MANY).sum())
    largest = torch.as_tensor(compared(bits) >= exact << _BELOW).nonzero()[:, 0]
    result[largest] = _relative_in_order(flat[largest])
    return result


def _bits(values: Tensor) -> Tensor:
    """Bits of non-negative floats as integers in the same order, flat."""
    bits = values.reshape(-1).view(torch.int64 if values.itemsize == 8 else torch.int32)
    # Of a negative zero the integer is the least of all. Looking is cheaper than copying.
    return bits if int(bits.min()) >= 0 else bits.clamp(min=0)


class _Bits:
    """Bits of what a part gives, as float32."""

    def __init__(self, part: Values):
        self._part = part

    def __call__(self) -> Tensor:
        return _bits(self._part().float())


class _Selected(NamedTuple):
    """The n-th largest of all numbers, and how many of each part are above and equal to it."""

    threshold: int
    above: list[int]
    equal: list[int]


def _counted(part: Values, shift: int, higher: int | None) -> Tensor:
    """Count the digits above `shift`, of the numbers that have `higher` above these digits."""
    found = part()
    total = torch.zeros(1 << _DIGIT, dtype=torch.int64, device=found.device)
    for bits in pieces(found):
        if higher is None:
            digits = bits >> shift
        else:
            seen = compared(bits)
            within = torch.as_tensor(seen[seen >> (shift + _DIGIT) == higher])
            digits = (within >> shift) & ((1 << _DIGIT) - 1)
        total += torch.bincount(digits, minlength=1 << _DIGIT)
    # Those of many parts are held at the same time.
    return total.to(torch.int32).cpu()


def pieces(flat: Tensor, at_least: int = 0) -> Sequence[Tensor]:
    """Cut a flat tensor so that what is computed of a piece stays in a CPU's cache.

    Of a large one it would go to memory that the system has to clear first, which takes longer
    than all else.
    """
    return flat.split(max(_PIECE, at_least)) if flat.device.type == "cpu" else (flat,)


def _select(parts: Sequence[Values], n_bits: int, n: int) -> _Selected:
    """Find the n-th largest of non-negative integers of `n_bits` bits; 1 <= n <= their number."""
    above, equal = [0] * len(parts), [0] * len(parts)
    prefix = 0
    for shift in range(n_bits - _DIGIT, -1, -_DIGIT):
        higher = None if shift == n_bits - _DIGIT else prefix
        count = partial(_counted, shift=shift, higher=higher)
        counts = results_side_by_side(count, parts, size=lambda _: 0)
        total = sum(counts, torch.zeros(1 << _DIGIT, dtype=torch.int64))
        not_below = total.flip(0).cumsum(0).flip(0)
        digit = int((not_below >= n - sum(above)).nonzero()[-1])
        above = [more + int(c[digit + 1 :].sum()) for more, c in zip(above, counts, strict=True)]
        equal = [int(c[digit]) for c in counts]
        prefix = prefix << _DIGIT | digit
    return _Selected(prefix, above, equal)
