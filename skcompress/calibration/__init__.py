"""From batches of unlabelled inputs to second moments of what each weight is applied to.

`batches` makes one form of all kinds of data; `collect` runs a model on them and gives
`Statistics` by the name of the weight, `stream` the same piece by piece; `Lockstep` sets what
a layer is given in one network against what it gave in another. `output_moments` says how
much the network's outputs react to each weight's, and `Reference` how far other models' outputs
are from those of one. `weight_gradients` says how much they react to single numbers of a weight.
`weighted` makes some samples count more than others, and `addends` says what the outputs of layers
are added to.
"""

from .addends import addends
from .anchored import Anchored
from .batches import Batch, Batches, batches, device_of, n_samples
from .borrowed import Turn, observer, restored_randomness, same_randomness
from .collect import collect, stream
from .comparison import output_errors
from .divergence import Reference, divergence
from .gradients import kfac_energy, output_moments
from .lockstep import Lockstep
from .norm_statistics import estimated, own_statistics
from .normalization import Normalization, fold, foldable, following
from .statistics import Moments, Statistics
from .weight_gradients import weight_gradients
from .weighting import class_weights, weighted

__all__ = [
    "Anchored",
    "Batch",
    "Batches",
    "Lockstep",
    "Moments",
    "Normalization",
    "Reference",
    "Statistics",
    "Turn",
    "addends",
    "batches",
    "class_weights",
    "collect",
    "device_of",
    "divergence",
    "estimated",
    "fold",
    "foldable",
    "following",
    "kfac_energy",
    "n_samples",
    "observer",
    "output_errors",
    "output_moments",
    "own_statistics",
    "restored_randomness",
    "same_randomness",
    "stream",
    "weight_gradients",
    "weighted",
]
