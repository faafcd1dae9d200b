"""What a plugin must write, and the records that pass between the parts.

A plugin package subclasses one of `Decomposition`, `Allocation` or `SparsityAllocation`,
`Regularizer`, `Criterion`, `DataCriterion` or `ChannelCriterion`, `Cost`, `Storage`, `Objective`,
`LayerKind` or `Compressor`, and names it in the entry-point group of that kind. `docs/plugins.md`
takes an author from an empty folder to a tested package. What of its parameters is worth searching
it says in a class attribute `search_space`, in the words of `skcompress.spaces`.
"""

from .allocation import Allocation, Choice, Layer, Prunable, SparsityAllocation
from .channel_criterion import ChannelCriterion, ChannelReading, Channels
from .compressor import Compressor
from .cost import Cost, CostedWeight, Options, StandInCall
from .criterion import Criterion, DataCriterion, Evidence
from .decomposition import Curve, Decomposition, Factorization, Rank, Spectrum
from .factors import Factors, Pivots, Sparse, Stage
from .inputs import Inputs, Lookups, Patches, Rows, rows
from .layer_kind import Factorized, LayerKind, Memo, Slot
from .metric import Metric
from .modelwise import Modelwise
from .objective import Bench, Objective
from .recurrence import Preactivation, Recurrence, Unrolled
from .regularizer import Regularizer, SumRegularizer
from .second_moment import Dense, SecondMoment, Spanned
from .storage import Storage
from .weight_decomposition import WeightDecomposition

__all__ = [
    "Allocation",
    "Bench",
    "ChannelCriterion",
    "ChannelReading",
    "Channels",
    "Choice",
    "Compressor",
    "Cost",
    "CostedWeight",
    "Criterion",
    "Curve",
    "DataCriterion",
    "Decomposition",
    "Dense",
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
    "Modelwise",
    "Objective",
    "Options",
    "Patches",
    "Pivots",
    "Preactivation",
    "Prunable",
    "Rank",
    "Recurrence",
    "Regularizer",
    "Rows",
    "SecondMoment",
    "Slot",
    "Spanned",
    "Sparse",
    "SparsityAllocation",
    "Spectrum",
    "Stage",
    "StandInCall",
    "Storage",
    "SumRegularizer",
    "Unrolled",
    "WeightDecomposition",
    "rows",
]
