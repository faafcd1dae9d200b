"""What a plugin must write, and the records that pass between the parts.

A plugin package subclasses one of `Decomposition`, `Allocation` or `SparsityAllocation`,
`Regularizer`, `Criterion` or `DataCriterion`, `Compressor`, or `LayerKind`, and names it in the
entry-point group of that kind. `docs/plugins.md` takes an author from an empty folder to a tested
package. What of its parameters is worth searching it says in a class attribute `search_space`, in
the words of `skcompress.spaces`.
"""

from .allocation import Allocation, Choice, Layer, Prunable, SparsityAllocation
from .compressor import Compressor
from .criterion import Criterion, DataCriterion, Evidence
from .decomposition import Curve, Decomposition, Factorization, Rank, Spectrum
from .factors import Factors, Pivots, Sparse, Stage
from .inputs import Inputs, Lookups, Patches, Rows, rows
from .layer_kind import Factorized, LayerKind, Memo, Slot
from .metric import Metric
from .regularizer import Regularizer

__all__ = [
    "Allocation",
    "Choice",
    "Compressor",
    "Criterion",
    "Curve",
    "DataCriterion",
    "Decomposition",
    "Evidence",
    "Factorization",
    "Factorized",
    "Factors",
    "Inputs",
    "Layer",
    "LayerKind",
    "Lookups",
    "Memo",
    "Metric",
    "Patches",
    "Pivots",
    "Prunable",
    "Rank",
    "Regularizer",
    "Rows",
    "Slot",
    "Sparse",
    "SparsityAllocation",
    "Spectrum",
    "Stage",
    "rows",
]
