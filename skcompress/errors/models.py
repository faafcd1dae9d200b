"""Models, layers and weights that cannot be worked on."""

from __future__ import annotations

from collections.abc import Sequence

from .base import SkcompressError, described, suggestion


class ModelTypeError(SkcompressError, TypeError):
    """Something else than a `torch.nn.Module` instance was passed as the model."""

    def __init__(self, owner: str, received: object):
        super().__init__(f"{owner} takes a torch.nn.Module instance; got {described(received)}")


class ModelCopyError(SkcompressError, ValueError):
    """`copy.deepcopy` refuses the user's model."""

    def __init__(self, cause: BaseException):
        super().__init__(
            "the model cannot be copied, and skcompress never changes the one it is given: "
            f"copy.deepcopy(model) raised {type(cause).__name__}: {cause}"
        )


class ResizeError(SkcompressError, TypeError):
    """Embeddings, or an output layer, that transformers cannot resize."""

    def __init__(self, names: Sequence[str]):
        super().__init__(
            f"resize_token_embeddings cannot resize {', '.join(map(repr, names))}: factors stand "
            f"there. Resize first and compress then, or leave it dense: exclude={list(names)}"
        )


class SelectionError(SkcompressError, ValueError):
    """A pattern of `layers`, `exclude` or `rank` that matches nothing."""

    def __init__(
        self, parameter: str, pattern: object, names: Sequence[str], reason: str | None = None
    ):
        if reason is not None:
            hint = f"what is called so cannot be compressed: {reason}"
        elif isinstance(pattern, type):
            hint = f"the model has no layer of type {pattern.__name__}"
        else:
            hint = suggestion(str(pattern), names)
        super().__init__(f"{parameter}={pattern!r} matches no layer of the model; {hint}")


class PatternTypeError(SkcompressError, TypeError):
    """A pattern of `layers`, `exclude` or `rank` that is no name and no type."""

    def __init__(self, parameter: str, pattern: object):
        super().__init__(
            f"patterns of {parameter} must be names, glob patterns or types of modules; got "
            f"{pattern!r}"
        )


class NoLayerError(SkcompressError, ValueError):
    """Nothing in the model can be compressed."""

    def __init__(self, owner: str, reasons: Sequence[tuple[str, str]]):
        listed = "; ".join(f"{name}: {why}" for name, why in reasons[:6])
        more = f"; and {len(reasons) - 6} more" if len(reasons) > 6 else ""
        super().__init__(
            f"{owner} found no layer to compress: {listed or 'the model has no parameters'}{more}"
        )


class NonFiniteWeightError(SkcompressError, ValueError):
    """NaN or infinity in a weight."""

    def __init__(self, layer: str, n_bad: int, shape: Sequence[int]):
        super().__init__(
            f"the weight of layer {layer!r} has {n_bad} NaN or infinite values (shape "
            f"{tuple(shape)}): repair or retrain it, or leave it out with exclude=[{layer!r}]"
        )


class HugeWeightError(SkcompressError, ValueError):
    """A weight whose squares add up to infinity in the precision that is computed in."""

    def __init__(self, layer: str, largest: float, shape: Sequence[int]):
        super().__init__(
            f"the weight of layer {layer!r} has values up to {largest:.3g} (shape {tuple(shape)}), "
            "whose squares add up to infinity in float32: scale it down, convert the model to "
            f"float64 with model.double(), or leave it out with exclude=[{layer!r}]"
        )


class MetaWeightError(SkcompressError, ValueError):
    """A weight without values where values are needed."""

    def __init__(self, layer: str):
        super().__init__(
            f"the weight of layer {layer!r} is on the meta device and has no values: fit on a "
            "model with values; transform then takes a model on the meta device too"
        )


class PlanMismatchError(SkcompressError, ValueError):
    """`transform` of a model that differs from the one that was fitted."""

    def __init__(self, layer: str, received: str, expected: str):
        super().__init__(
            f"layer {layer!r} {received}, the plan expects {expected}: fit again on this model"
        )


class ModelMismatchError(SkcompressError, ValueError):
    """Models that are to be compared layer by layer, and have different layers."""

    def __init__(self, layer: str, one: str, other: str, difference: str):
        super().__init__(
            f"layer {layer!r} of model {one!r} {difference} in model {other!r}: compare models of "
            "one architecture, or choose layers that all of them have with layers= or exclude="
        )


class DamageWarning(UserWarning):
    """A fit without data whose predicted errors are of the kind that destroys networks."""


class InverseError(SkcompressError, ValueError):
    """`inverse_transform` of a compressor whose result cannot be taken back."""

    def __init__(self, owner: str):
        super().__init__(
            f"{owner} has no inverse_transform: what it removes is not stored anywhere. Keep "
            "the original model"
        )
