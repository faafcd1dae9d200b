"""Conformance checks: the laws that every plugin keeps, ours and everybody's.

A plugin package calls these in its own tests::

    def test_mine():
        skcompress.testing.check_decomposition(Mine())

Each takes an instance, or a class that is then made with its defaults, and raises
AssertionError that names the law, the plugin and the case.
"""

from .allocations import check_allocation
from .cases import awkward_weights, small_models
from .channel_criteria import check_channel_criterion
from .compressors import check_compressor
from .costs import check_cost
from .criteria import check_criterion
from .decompositions import check_decomposition
from .layers import check_layer_kind
from .objectives import check_objective
from .regularizers import check_regularizer
from .storages import check_storage
from .untouched import check_untouched, snapshot

__all__ = [
    "awkward_weights",
    "check_allocation",
    "check_channel_criterion",
    "check_compressor",
    "check_cost",
    "check_criterion",
    "check_decomposition",
    "check_layer_kind",
    "check_objective",
    "check_regularizer",
    "check_storage",
    "check_untouched",
    "small_models",
    "snapshot",
]
