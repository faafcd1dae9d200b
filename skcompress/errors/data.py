"""Calibration data that cannot be used."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from .base import SkcompressError

_DATA_FORMS = (
    "a tensor, an array, a DataLoader or a list of batches, where a batch is a tensor, an "
    "array, a tuple or list whose first item is the input, or a dict of keyword inputs"
)


class DataTypeError(SkcompressError, TypeError):
    """Calibration data that no batches can be read from."""

    def __init__(self, owner: str, received: object, hint: str = ""):
        super().__init__(
            f"data of {owner} must be {_DATA_FORMS}; got an object of type "
            f"{type(received).__name__}" + (f": {hint}" if hint else "")
        )


class OneShotDataError(SkcompressError, TypeError):
    """Calibration data that can be read only once."""

    def __init__(self, owner: str, received: object):
        super().__init__(
            f"data of {owner} is read several times, and a {type(received).__name__} can be read "
            "only once: pass list(data), or a DataLoader"
        )


class EmptyDataError(SkcompressError, ValueError):
    """Calibration data without a single input."""

    def __init__(self, owner: str, received: object):
        shape = getattr(received, "shape", None)
        what = type(received).__name__ + (f" of shape {tuple(shape)}" if shape is not None else "")
        super().__init__(
            f"data of {owner} is empty: got a {what}. Pass a few hundred unlabelled inputs, or "
            "data=None to work without data"
        )


class BatchTypeError(SkcompressError, TypeError):
    """A batch that cannot be handed to the model."""

    def __init__(self, owner: str, number: int, received: str, hint: str = ""):
        super().__init__(
            f"batch {number} (counted from 0) of the data of {owner} must be a tensor, an array, "
            f"a tuple or list whose first item is the input, or a dict of keyword inputs; got "
            f"{received}" + (f": {hint}" if hint else "")
        )


class ForwardError(SkcompressError, ValueError):
    """A model that raised an error of its own on a batch."""

    def __init__(self, done: str, batch: Any, cause: Exception):
        inputs = [f"{x.dtype} {tuple(x.shape)}" for x in batch.leaves]
        words = (str(cause).strip().splitlines() or [""])[0].rstrip(".")
        hint = {
            "run": "pass batches that the model itself takes",
            "differentiated": "use settings that need no gradients, as metric='activations' does",
        }[done]
        super().__init__(
            f"the model could not be {done} on batch {batch.number} (counted from 0) of the data "
            f"of {batch.owner}, with inputs {', '.join(inputs) or 'unknown'}: "
            f"{type(cause).__name__}: {words}; {hint}"
        )


class NonFiniteDataError(SkcompressError, ValueError):
    """NaN or infinity in calibration data."""

    def __init__(self, owner: str, number: int, name: str, n_bad: int, shape: Sequence[int]):
        super().__init__(
            f"{name} in batch {number} (counted from 0) of the data of {owner} has {n_bad} NaN or "
            f"infinite values (shape {tuple(shape)}): repair that batch or leave it out"
        )


class NonFiniteInputError(SkcompressError, ValueError):
    """NaN or infinity inside the model, though its weights and its data are finite."""

    def __init__(self, layer: str):
        super().__init__(
            f"the inputs of layer {layer!r} have NaN or infinite values, or squares beyond "
            "float32, on this data: check how the data is scaled, run the model in float32, or "
            f"leave the layer out with exclude=[{layer!r}]"
        )


class OutputTypeError(SkcompressError, TypeError):
    """A model whose outputs cannot be compared."""

    def __init__(self, received: object):
        super().__init__(
            f"the forward of the model gives a {type(received).__name__} without any floating "
            "tensor of at least one axis, so that its outputs cannot be compared: give it a "
            "forward that returns logits or values"
        )


class OutputShapeError(SkcompressError, ValueError):
    """Two models that give outputs of different shape for the same inputs."""

    def __init__(self, number: int, received: Sequence[int], expected: Sequence[int]):
        super().__init__(
            f"the outputs of the compared model for batch {number} (counted from 0) are "
            f"{tuple(received)} as (positions, size), those of the original {tuple(expected)}: "
            "compare models of one architecture, whose outputs depend on their inputs only"
        )


class NonFiniteOutputError(SkcompressError, ValueError):
    """NaN or infinity in what the original model gives."""

    def __init__(self, owner: str, number: int):
        super().__init__(
            f"the outputs of the model for batch {number} (counted from 0) of the data of {owner} "
            "have NaN or infinite values: leave that batch out, or run the model in float32"
        )


class NonFiniteGradientError(SkcompressError, ValueError):
    """NaN or infinity in a gradient, though the outputs are finite."""

    def __init__(self, layer: str):
        super().__init__(
            f"the gradients at the outputs of layer {layer!r} have NaN or infinite values, or "
            "squares beyond float32, on this data: run the model in float32, use "
            f"metric='activations', or leave the layer out with exclude=[{layer!r}]"
        )


class CalibrationValueError(SkcompressError, ValueError):
    """A setting of the calibration that has no meaning."""

    def __init__(self, parameter: str, rule: str, received: object):
        super().__init__(f"{parameter} of the calibration must be {rule}; got {received!r}")


class SampleWeightError(SkcompressError, ValueError):
    """Weights of samples or of classes that do not fit the data."""

    def __init__(self, owner: str, parameter: str, why: str):
        super().__init__(f"{parameter} of {owner} {why}")


class MissingDataError(SkcompressError, ValueError):
    """A setting that needs data, without data."""

    def __init__(self, owner: str, setting: str):
        super().__init__(
            f"{setting} of {owner} needs data: pass a few hundred unlabelled inputs as the "
            "second argument, fit(model, data)"
        )


class CalibratedWeightError(SkcompressError, ValueError):
    """`transform` of other weights than those that were fitted with data."""

    def __init__(self, layer: str):
        super().__init__(
            f"the weight of layer {layer!r} is not the one that was fitted, and factors found "
            "with data are good for that one only: fit again, on this model, with data"
        )
