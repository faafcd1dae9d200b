"""From factors and the layer they replace to the module that stands in for it.

One file per kind of layer, each registered in the entry-point group `skcompress.layers` as those of
other packages are. The stand-ins are made of plain torch.nn layers and know nothing of compressors.
"""

from ..protocols import Factorized, LayerKind, Slot
from .kinds import kind_of
from .substitution import carry_over, densify, replace_modules, substitute

__all__ = [
    "Factorized",
    "LayerKind",
    "Slot",
    "carry_over",
    "densify",
    "kind_of",
    "replace_modules",
    "substitute",
]
