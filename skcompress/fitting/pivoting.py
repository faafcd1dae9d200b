"""In which form the layers of a weight can store its factors: with pivots, with a sparse term."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from ..decompositions.pivoted import Pivoted
from ..layers import kind_of
from ..network.weights import Site
from ..protocols import Decomposition

NO_SPARSE = "layers of this kind take no sparse term"


def storable(able: Sequence[Decomposition], site: Site) -> list[Decomposition]:
    """Give the decompositions whose factors all layers of a weight can store.

    able : those that can cut it up
    """
    kinds = [kind_of(module) for module in site.modules]
    takes_sparse = all(kind is not None and kind.takes_sparse for kind in kinds)
    return [d for d in able if takes_sparse or not d.adds_sparse]


def prefer_pivots(
    able: Sequence[Decomposition], decompositions: Mapping[str, Decomposition], site: Site
) -> list[Decomposition]:
    """Give pivoted forms in place of those that they wrap, if all layers of a weight take them.

    able : those that can cut up the weight; decompositions : all that there are
    """
    plain = [d for d in able if not isinstance(d, Pivoted)]
    kinds = [kind_of(module) for module in site.modules]
    if not all(kind is not None and kind.takes_pivots for kind in kinds):
        return plain
    # With the same errors at less cost, the others would never be chosen.
    pivoted = {id(d.decomposition): d for d in decompositions.values() if isinstance(d, Pivoted)}
    return [pivoted.get(id(d), d) for d in plain]
