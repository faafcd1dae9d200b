"""The cases of `pairwise` hold every pair of values, and are few."""

from __future__ import annotations

from itertools import combinations, product

import pytest
from pairwise import pairwise, rows


@pytest.mark.parametrize("sizes", [(3, 3, 3), (9, 3, 5, 2), (11, 6, 2, 2), (4, 1, 2), (2, 5)])
def test_every_two_values_meet_in_few_rows(sizes):
    found = list(rows(sizes))
    for (i, m), (j, n) in combinations(enumerate(sizes), 2):
        assert {(row[i], row[j]) for row in found} == set(product(range(m), range(n)))
    largest, second = sorted(sizes)[-2:]
    assert largest * second <= len(found) <= 1.5 * largest * second
    assert len(set(found)) == len(found)


@pairwise(number=[1, 2], word={"first": "a", "second": "b"}, flag=[False, True])
def test_values_arrive_by_name(number, word, flag, request):
    name = {"a": "first", "b": "second"}[word]
    assert request.node.callspec.id == f"{number}-{name}-{flag}"
