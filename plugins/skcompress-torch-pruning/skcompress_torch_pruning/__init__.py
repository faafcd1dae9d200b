"""Whole channels physically removed, for skcompress, by torch-pruning's dependency graph."""

from .plan import ChannelPlan, ChannelReport
from .pruner import ChannelPruner

__all__ = ["ChannelPlan", "ChannelPruner", "ChannelReport"]
__version__ = "0.1.0"
