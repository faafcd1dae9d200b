"""From batches of unlabelled inputs to second moments of what each weight is applied to.

`batches` makes one form of all kinds of data; `collect` runs a model on them and gives
`Statistics` by the name of the weight, `stream` the same piece by piece; `anchored` sets what
a layer is given in one network against what it gave in another.
"""

from .anchored import Anchored, anchored, calls_in_order
from .batches import Batch, Batches, batches
from .borrowed import observer
from .collect import collect, stream
from .statistics import Moments, Statistics

__all__ = [
    "Anchored",
    "Batch",
    "Batches",
    "Moments",
    "Statistics",
    "anchored",
    "batches",
    "calls_in_order",
    "collect",
    "observer",
    "stream",
]
