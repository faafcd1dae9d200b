"""What compressors of other packages are built of: the published part of the machinery.

A plugin writes a class from `skcompress.protocols` and needs nothing of this, unless it is a
compressor with a `fit` of its own. Such a one goes the road that the built-in ones go:

==================== ===============================================================================
settings
`PATTERNS`           constraints on the parameters `layers` and `exclude`
`check_model`        refuses what is no module; `check_patterns` what names no layer
`as_patterns`        lists `Patterns`, which may be given alone; `matches` tells what one hits
`display_name`       name of a module for people
`computing`          runs a method without gradients and modes of torch
`Steps`              records how long the steps of a fit take; `device_of` says on which device
weights
`select`             the `Selection` of a model: a `Site` for each weight, and why others stay
`kind_of`            how the weights of a class of layers are read: `slots`, `inputs`, `build`
`working_weight`     a weight (groups, out, in, *kernel) to compute with
`fingerprint`        a `Fingerprint`, which changes with a weight; refuses NaN and infinity
data
`batches`            `Batches`, each a `Batch`, of whatever people pass as data
`weighted`           the same with weights of classes and samples; `n_samples` of a batch
`observe`            the one loop that runs networks over data, with a `Reducer` looking on
`Differentiating`    a reducer that takes derivatives of what a network gives, read as a `Form` says
`score`, `set_rule`  what a backward pass starts from; rules of relevance
`tensors_in`         the tensors in what a network gives
a fit
`Calibration`        a network on data: its structure, statistics, costs; with a `Recall` of results
`WeightOnData`       metrics of a weight by the `Statistics` of what it meets on the data
`reconstruct`        fits weights one after another to the original's outputs: a `Reconstruction`
`least_squares`      fits one weight of full rank, in a `protocols.Metric`
`Fitted`             all that a fit learnt, and the one way to apply it to a model
`Replacement`        what stands for one weight; `DenseWeight`: other values
`plan_of`            the `plan.Plan`, which says what happens to each weight
`closest`            the `Outcome` whose outputs are closest to the original's, compared on data
models
`copied`             a copy with values of its own
`note_shapes`        notes on a layer what it was before channels go, so that it can be saved
`note_number`        the same of a number that a module holds, of heads for one
`let_save`           lets models of transformers within a model save themselves as they are now
`fold`               a copy with normalisations multiplied in; `foldable_norms` says which can be
==================== ===============================================================================
"""

from .compressors.checks import PATTERNS, computing
from .decompositions.regression import least_squares
from .fitting.calibration import Calibration
from .fitting.candidates import WeightOnData, working_weight
from .fitting.choices import plan_of
from .fitting.comparison import Outcome, closest
from .fitting.digests import Fingerprint, fingerprint
from .fitting.fitted import DenseWeight, Fitted, Replacement
from .fitting.memo import Recall
from .fitting.reconstruction import Reconstruction, reconstruct
from .fitting.steps import Steps
from .layers import kind_of
from .layers.narrowed import note_number, note_shapes
from .layers.pretrained import let_save
from .layers.reparametrized import copied
from .network.batches import Batch, Batches, batches, device_of, n_samples
from .network.normalization import fold, foldable_norms
from .network.observing import Reducer, observe
from .network.readers import tensors_in
from .network.weighting import weighted
from .network.weights import (
    Patterns,
    Selection,
    Site,
    as_patterns,
    check_model,
    check_patterns,
    display_name,
    matches,
    select,
)
from .statistics.backward import Differentiating, score
from .statistics.moments import Statistics
from .statistics.outputs import Form
from .statistics.relevance import set_rule

__all__ = [
    "PATTERNS",
    "Batch",
    "Batches",
    "Calibration",
    "DenseWeight",
    "Differentiating",
    "Fingerprint",
    "Fitted",
    "Form",
    "Outcome",
    "Patterns",
    "Recall",
    "Reconstruction",
    "Reducer",
    "Replacement",
    "Selection",
    "Site",
    "Statistics",
    "Steps",
    "WeightOnData",
    "as_patterns",
    "batches",
    "check_model",
    "check_patterns",
    "closest",
    "computing",
    "copied",
    "device_of",
    "display_name",
    "fingerprint",
    "fold",
    "foldable_norms",
    "kind_of",
    "least_squares",
    "let_save",
    "matches",
    "n_samples",
    "note_number",
    "note_shapes",
    "observe",
    "plan_of",
    "reconstruct",
    "score",
    "select",
    "set_rule",
    "tensors_in",
    "weighted",
    "working_weight",
]
