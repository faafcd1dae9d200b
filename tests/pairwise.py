"""Fewer cases than the full product: every two values of two parameters meet in one of them.

What three parameters have to bring about together is not looked for. So a full product stays
where two parameters are all there are, and where the interplay itself is the subject.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from itertools import combinations, product
from typing import Any

import pytest

Row = tuple[int, ...]


def pairs(row: Row) -> set[tuple[tuple[int, int], ...]]:
    """Each two (place, value) of a row."""
    return set(combinations(enumerate(row), 2))


def rows(sizes: Iterable[int]) -> Iterator[Row]:
    """Rows of indices below `sizes`, the one with the most new pairs next, until none is new."""
    candidates = {row: pairs(row) for row in product(*map(range, sizes))}
    missing = set().union(*candidates.values())
    while missing:
        best = max(candidates, key=lambda row: len(candidates[row] & missing))
        missing -= candidates.pop(best)
        yield best


def pairwise(**parameters: Mapping[str, Any] | Iterable[Any]) -> pytest.MarkDecorator:
    """Parametrize a test by three parameters or more; a mapping names its values."""
    named = [
        values if isinstance(values, Mapping) else {str(value): value for value in values}
        for values in parameters.values()
    ]
    chosen = [
        [list(values)[index] for values, index in zip(named, row, strict=True)]
        for row in rows(map(len, named))
    ]
    cases = [
        tuple(values[name] for values, name in zip(named, names, strict=True)) for names in chosen
    ]
    return pytest.mark.parametrize(tuple(parameters), cases, ids=map("-".join, chosen))
