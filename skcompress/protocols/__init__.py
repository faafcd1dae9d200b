"""What a plugin must write, and the records that pass between the parts.

A plugin package subclasses one of `Decomposition`, `Allocation` or `SparsityAllocation`,
`Regularizer`, `Criterion`, `DataCriterion` or `ChannelCriterion`, `Cost`, `Storage` or
`Compressor`, and names it in the entry-point group of that kind. `docs/plugins.md` takes an author
from an empty folder to a tested package. What of its parameters is worth searching it says in a
class attribute `search_space`, in the words of `skcompress.spaces`.
"""

from .allocation import Allocation, Choice, Layer, Prunable, SparsityAllocation
from .channel_criterion import ChannelCriterion, ChannelReading, Channels
from .compressor import Compressor
from .cost import Cost, CostedWeight, Options, StandInCall
from .criterion import Criterion, DataCriterion, Evidence
from .decomposition import Curve, Decomposition, Factorization, Rank, Spectrum
from .factors import Factors, Pivots, Sparse, Stage
from .metric import Metric
from .regularizer import Regularizer
from .storage import Storage

__all__ = [
    "Allocation",
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
    "Evidence",
    "Factorization",
    "Factors",
    "Layer",
    "Metric",
    "Options",
    "Pivots",
    "Prunable",
    "Rank",
    "Regularizer",
    "Sparse",
    "SparsityAllocation",
    "Spectrum",
    "Stage",
    "StandInCall",
    "Storage",
]
