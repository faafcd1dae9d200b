"""Make neural networks small: compressors for PyTorch in the manner of scikit-learn.

>>> from skcompress import SVDCompressor
>>> small = SVDCompressor(rank=0.3).fit_transform(model)        # doctest: +SKIP
"""

from __future__ import annotations

import sys
import warnings
from importlib import import_module
from typing import TYPE_CHECKING, Any

__version__ = "0.1.0"

if TYPE_CHECKING:
    from . import errors, protocols, registry, spaces, testing
    from .checkpoint import load, save, to_plain
    from .checkpoint.streaming import compress_checkpoint
    from .compressors.low_rank import LowRankCompressor
    from .compressors.pruning.magnitude import MagnitudePruner
    from .compressors.pruning.pruner import Pruner
    from .compressors.svd import SVDCompressor
    from .compressors.tucker import TuckerCompressor
    from .metrics import count_bytes, count_flops, count_nonzeros, count_parameters, measure_latency
    from .plotting import ParetoDisplay, SpectrumDisplay, WeightDisplay
    from .regularizers.finite_difference import FirstDifference, SecondDifference
    from .regularizers.frobenius import FrobeniusNorm
    from .regularizers.group_lasso import GroupLasso
    from .regularizers.hoyer_spectrum import HoyerSpectrum
    from .regularizers.l1 import L1Norm
    from .regularizers.log_det import LogDet
    from .regularizers.nuclear_norm import NuclearNorm
    from .regularizers.nuclear_ratio import NuclearRatio
    from .regularizers.orthogonality import Orthogonality
    from .regularizers.schatten import SchattenNorm
    from .regularizers.stable_rank import StableRank
    from .training import SmoothClassifier, SmoothRegressor
    from .tuning import CompressionSearch, suggest_params

# Where each public name lives. Importing on first use keeps `import skcompress` quick.
_HOMES = {
    "SVDCompressor": "compressors.svd",
    "TuckerCompressor": "compressors.tucker",
    "Pruner": "compressors.pruning.pruner",
    "MagnitudePruner": "compressors.pruning.magnitude",
    "LowRankCompressor": "compressors.low_rank",
    "NuclearNorm": "regularizers.nuclear_norm",
    "FirstDifference": "regularizers.finite_difference",
    "SecondDifference": "regularizers.finite_difference",
    "NuclearRatio": "regularizers.nuclear_ratio",
    "HoyerSpectrum": "regularizers.hoyer_spectrum",
    "SchattenNorm": "regularizers.schatten",
    "LogDet": "regularizers.log_det",
    "StableRank": "regularizers.stable_rank",
    "Orthogonality": "regularizers.orthogonality",
    "FrobeniusNorm": "regularizers.frobenius",
    "L1Norm": "regularizers.l1",
    "GroupLasso": "regularizers.group_lasso",
    "SmoothClassifier": "training",
    "SmoothRegressor": "training",
    "CompressionSearch": "tuning",
    "ParetoDisplay": "plotting",
    "SpectrumDisplay": "plotting",
    "WeightDisplay": "plotting",
    "suggest_params": "tuning",
    "compress_checkpoint": "checkpoint.streaming",
    "load": "checkpoint",
    "save": "checkpoint",
    "to_plain": "checkpoint",
    "count_bytes": "metrics",
    "count_flops": "metrics",
    "count_nonzeros": "metrics",
    "count_parameters": "metrics",
    "measure_latency": "metrics",
}
# Public names that a package of their own provides: kind and name of the plugin, and the package.
# Not in __all__: `from skcompress import *` does without them where they are not installed.
_PROVIDED = {"ChannelPruner": ("compressors", "channel", "skcompress-torch-pruning")}
_MODULES = ("errors", "protocols", "registry", "spaces", "testing")

__all__ = [
    "CompressionSearch",
    "FirstDifference",
    "FrobeniusNorm",
    "GroupLasso",
    "HoyerSpectrum",
    "L1Norm",
    "LogDet",
    "LowRankCompressor",
    "MagnitudePruner",
    "NuclearNorm",
    "NuclearRatio",
    "Orthogonality",
    "ParetoDisplay",
    "Pruner",
    "SVDCompressor",
    "SchattenNorm",
    "SecondDifference",
    "SmoothClassifier",
    "SmoothRegressor",
    "SpectrumDisplay",
    "StableRank",
    "TuckerCompressor",
    "WeightDisplay",
    "compress_checkpoint",
    "count_bytes",
    "count_flops",
    "count_nonzeros",
    "count_parameters",
    "errors",
    "load",
    "measure_latency",
    "protocols",
    "registry",
    "save",
    "spaces",
    "suggest_params",
    "testing",
    "to_plain",
]


def __getattr__(name: str) -> Any:
    if name in _HOMES:
        return getattr(import_module(f".{_HOMES[name]}", __name__), name)
    if name in _PROVIDED:
        return _provided(name, *_PROVIDED[name])
    if name in _MODULES:
        return import_module(f".{name}", __name__)
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")


def _provided(name: str, kind: str, plugin: str, package: str) -> Any:
    from . import errors, registry

    if plugin not in registry.names(kind):
        raise errors.MissingPluginError(name, package)
    return registry.resolve(kind, plugin)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})


_QUANTIZERS = "transformers.quantizers.auto"


class _WhenTransformersIsImported:
    """Lets `save_pretrained` and `from_pretrained` know compressed models.

    Transformers has no entry points, and importing skcompress does not import it: this stands among
    the finders of modules and waits for somebody who does.
    """

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        if name != _QUANTIZERS:
            return None
        others = [finder for finder in sys.meta_path if finder is not self]
        specs = (finder.find_spec(name, path, target) for finder in others)
        spec = next((found for found in specs if found is not None), None)
        loader: Any = spec and spec.loader
        if loader is not None:
            execute = loader.exec_module

            def exec_module(module: Any) -> None:
                execute(module)
                _register()

            loader.exec_module = exec_module
        return spec


def _register() -> None:
    try:
        import_module(".checkpoint.huggingface.quantizer", __name__).register()
    except Exception as cause:  # of a version of transformers that works otherwise
        warnings.warn(
            "save_pretrained and from_pretrained of this version will not do for compressed models "
            f"({type(cause).__name__}: {cause}); skcompress.save and load do",
            stacklevel=2,
        )


if _QUANTIZERS in sys.modules:
    _register()
elif not any(type(finder).__name__ == _WhenTransformersIsImported.__name__
             for finder in sys.meta_path):  # fmt: skip
    sys.meta_path.insert(0, _WhenTransformersIsImported())  # type: ignore[arg-type]
