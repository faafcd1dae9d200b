"""Exceptions that write their own messages.

Every error says which parameter or layer it is about, what was received and what to
do next. Each also derives from the built-in exception that callers would expect.
"""

from __future__ import annotations

import difflib
import math
from collections.abc import Iterable, Mapping, Sequence


class SkcompressError(Exception):
    """Base of every error that this library raises on purpose."""


def _suggestion(name: str, known: Sequence[str]) -> str:
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    if near:
        return "did you mean " + " or ".join(map(repr, near)) + "?"
    if not known:
        return "none is registered"
    shown = ", ".join(map(repr, known[:12])) + (", ..." if len(known) > 12 else "")
    return f"known: {shown}"


# --- plugins ---------------------------------------------------------------------------


class UnknownNameError(SkcompressError, ValueError):
    """A plugin name or kind that nobody registered."""

    def __init__(self, kind: str, name: str, known: Sequence[str]):
        super().__init__(f"no {kind} is named {name!r}; {_suggestion(name, known)}")


class PluginConflictError(SkcompressError, ValueError):
    """Two packages registered the same name."""

    def __init__(self, kind: str, name: str, packages: Iterable[str]):
        listed = " and ".join(sorted(map(repr, packages)))
        super().__init__(
            f"{name!r} of {kind} is registered by {listed}: uninstall one of them, "
            "or pass an instance instead of the name"
        )


class PluginLoadError(SkcompressError, ImportError):
    """A plugin whose module cannot be imported."""

    def __init__(self, kind: str, name: str, package: str, cause: BaseException):
        super().__init__(
            f"{name!r} of {kind}, provided by package {package!r}, could not be loaded: "
            f"{type(cause).__name__}: {cause}. Reinstall or remove {package!r}"
        )


class PluginTypeError(SkcompressError, TypeError):
    """A plugin, or an instance, that is not what its kind asks for."""

    def __init__(self, kind: str, received: object, expected: tuple[type, ...]):
        what = (
            f"the class {received.__qualname__}"
            if isinstance(received, type)
            else f"{received!r} of type {type(received).__name__}"
        )
        hint = (
            "; pass an instance of it, not the class"
            if isinstance(received, type) and issubclass(received, expected)
            else ""
        )
        known = " or ".join(f"{e.__module__}.{e.__qualname__}" for e in expected)
        super().__init__(f"{kind} must be names or instances of {known}; got {what}{hint}")


class MissingPluginError(SkcompressError, ImportError):
    """A public name of a plugin package that is not installed."""

    def __init__(self, name: str, package: str):
        super().__init__(
            f"skcompress.{name} is provided by the package {package}: install it, "
            f"`pip install {package}`, or in a checkout `pip install -e plugins/{package}`"
        )


class NotInstalledError(SkcompressError, RuntimeError):
    """The package runs from a folder without metadata, so it has no entry points."""

    def __init__(self) -> None:
        super().__init__(
            "skcompress is imported from a folder that was never installed, so it cannot "
            "find its plugins: run `pip install -e .` in the checkout"
        )


# --- models and layers -----------------------------------------------------------------


class ModelTypeError(SkcompressError, TypeError):
    """Something else than a `torch.nn.Module` instance was passed as the model."""

    def __init__(self, owner: str, received: object):
        if isinstance(received, type):
            what = f"the class {received.__qualname__}: pass an instance of it"
        else:
            what = f"an object of type {type(received).__name__}"
        super().__init__(f"{owner} takes a torch.nn.Module instance; got {what}")


class ModelCopyError(SkcompressError, ValueError):
    """`copy.deepcopy` refuses the user's model."""

    def __init__(self, cause: BaseException):
        super().__init__(
            "the model cannot be copied, and skcompress never changes the one it is given: "
            f"copy.deepcopy(model) raised {type(cause).__name__}: {cause}"
        )


class SelectionError(SkcompressError, ValueError):
    """A pattern of `layers`, `exclude` or `rank` that matches nothing."""

    def __init__(self, parameter: str, pattern: object, names: Sequence[str]):
        if isinstance(pattern, type):
            hint = f"the model has no layer of type {pattern.__name__}"
        else:
            hint = _suggestion(str(pattern), names)
        super().__init__(f"{parameter}={pattern!r} matches no layer of the model; {hint}")


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


class InverseError(SkcompressError, ValueError):
    """`inverse_transform` of a compressor whose result cannot be taken back."""

    def __init__(self, owner: str):
        super().__init__(
            f"{owner} has no inverse_transform: what it removes is not stored anywhere. Keep "
            "the original model"
        )


# --- penalties -------------------------------------------------------------------------


class RegularizerValueError(SkcompressError, ValueError):
    """A parameter of a regularizer that has no meaning."""

    def __init__(self, owner: str, parameter: str, rule: str, received: object):
        super().__init__(f"{parameter} of {owner} must be {rule}; got {received!r}")


class ProximalError(SkcompressError, ValueError):
    """A proximal step of a penalty that has none in closed form."""

    def __init__(self, owner: str):
        super().__init__(
            f"{owner} has no proximal operator in closed form: use add_grad_ instead, before "
            "optimizer.step()"
        )


class ComputedWeightError(SkcompressError, ValueError):
    """A proximal step on a weight that is computed from other parameters."""

    def __init__(self, owner: str, layer: str):
        super().__init__(
            f"the weight of layer {layer!r} is computed from other parameters, so that a "
            f"proximal step cannot be stored: use {owner}.add_grad_, which differentiates "
            f"through it, or leave it out with exclude=[{layer!r}]"
        )


# --- budgets ---------------------------------------------------------------------------


def _round_up(share: float) -> float:
    return math.ceil(share * 1e4) / 1e4


class BudgetError(SkcompressError, ValueError):
    """A budget that no choice of ranks can reach.

    `smallest` is the smallest fraction of the `unit` (parameters, FLOPs) that can be reached.
    Allocations leave the unit out: they see numbers only.
    """

    def __init__(
        self, rank: float, smallest: float, scope: str, hint: str = "", unit: str = "parameters"
    ):
        self._said = (rank, smallest, scope, hint)
        self.smallest = _round_up(smallest)
        super().__init__(
            f"rank={rank:g} cannot be reached: {scope} keeps at least {self.smallest:g} of its "
            f"{unit}. Ask for rank >= {self.smallest:g}" + (f", {hint}" if hint else "")
        )

    def of(self, unit: str) -> BudgetError:
        """Give the same error for a budget of something else than parameters."""
        return type(self)(*self._said, unit=unit)


class MissingSpectrumError(SkcompressError, ValueError):
    """A threshold on singular values, asked of a decomposition that has none."""

    def __init__(self, layer: str, scheme: str):
        super().__init__(
            f"the automatic rank needs singular values, and scheme {scheme!r} of layer "
            f"{layer!r} has none: give rank as a number"
        )


# --- calibration data ------------------------------------------------------------------

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


# --- search spaces ---------------------------------------------------------------------


class SearchRangeError(SkcompressError, ValueError):
    """A range or a choice that nothing can be drawn from."""

    def __init__(self, parameter: str, owner: str, rule: str, received: object):
        super().__init__(f"{parameter} of {owner} must be {rule}; got {received!r}")


class SearchDeclarationError(SkcompressError, TypeError):
    """A `search_space` that is not a mapping of parameters to ranges."""

    def __init__(self, owner: str, what: str):
        super().__init__(
            f"search_space of {owner} must map names of parameters to FloatRange, IntRange, "
            f"Options or Plugins of skcompress.spaces, or to None; {what}"
        )


class EstimatorTypeError(SkcompressError, TypeError):
    """Something else than an estimator, where its parameters are to be searched."""

    def __init__(self, owner: str, received: object):
        if isinstance(received, type):
            what = f"the class {received.__qualname__}: pass an instance of it"
        else:
            what = f"an object of type {type(received).__name__}"
            if isinstance(received, dict):
                what += ": suggest_estimator chooses between several"
        super().__init__(f"{owner} takes an estimator, such as SVDCompressor(); got {what}")


class NothingToSearchError(SkcompressError, ValueError):
    """An estimator, or a selection of its parameters, in which nothing is declared."""

    def __init__(self, owner: str):
        super().__init__(
            f"{owner} declares nothing to search: give its class a search_space (see "
            "skcompress.spaces), or name parameters with their ranges, "
            "override={'name': FloatRange(low, high)}"
        )


class UnknownParameterError(SkcompressError, ValueError):
    """A name or pattern of `only` or `override` that fits no parameter."""

    def __init__(self, argument: str, name: object, owner: str, known: Sequence[str], hint: str):
        why = hint or _suggestion(str(name), known)
        super().__init__(f"{argument} has {name!r}, which fits no parameter of {owner}; {why}")


class SpaceChangedError(SkcompressError, ValueError):
    """A study that goes on with another search space than it began with."""

    def __init__(self, study: str, differences: Sequence[str]):
        listed = "; ".join(differences[:8])
        more = f"; and {len(differences) - 8} more" if len(differences) > 8 else ""
        super().__init__(
            f"the search space is not the one that study {study!r} began with: {listed}{more}. "
            "Bring it back (install what is missing; only= and override= as they were), begin a "
            "new study, or give each estimator of one objective a prefix= of its own"
        )


# --- searching -------------------------------------------------------------------------


class ConstraintError(SkcompressError, ValueError):
    """A condition of `constraints` that is not written as one."""

    def __init__(self, received: object, known: Sequence[str]):
        super().__init__(
            f"a constraint is written as 'score >= 0.9', 'n_parameters <= 0.3 * dense' or "
            f"'score >= dense - 0.01', with one of {', '.join(known)} on the left; got {received!r}"
        )


class MissingValidationError(SkcompressError, ValueError):
    """The name of a scikit-learn scorer, without the arrays that it needs."""

    def __init__(self, owner: str, scoring: str, received: object = None):
        what = "" if received is None else f", which an object of type {type(received).__name__}"
        super().__init__(
            f"scoring={scoring!r} of {owner} needs validation=(inputs, targets) in fit"
            + (f"{what} is not" if what else "")
            + "; or pass a callable, scoring(model) -> float"
        )


class ValidationShapeError(SkcompressError, ValueError):
    """Validation targets that do not go with what the network gives."""

    def __init__(self, targets: str, outputs: str):
        super().__init__(
            f"validation has {targets}, and the network gives {outputs}: the two must go "
            "together, or pass a callable, scoring(model) -> float"
        )


class ScoreError(SkcompressError, ValueError):
    """A score that is not a finite number."""

    def __init__(self, received: object):
        super().__init__(f"scoring must give a finite number; got {received!r}")


class DenseScoreError(SkcompressError, ValueError):
    """A `scoring` that fails for the uncompressed model, and so would in every trial."""

    def __init__(self, cause: BaseException):
        super().__init__(
            f"scoring fails for the uncompressed model: {type(cause).__name__}: {cause}"
        )


class StorageError(SkcompressError, RuntimeError):
    """A study that cannot be opened where it is to be stored."""

    def __init__(self, storage: str, reason: str):
        super().__init__(f"storage={storage} cannot be used: {reason}")


class StudyMismatchError(SkcompressError, ValueError):
    """A study that was begun with other settings than those it is to be resumed with."""

    def __init__(self, study: str, setting: str, received: object, stored: object):
        super().__init__(
            f"study {study!r} was begun with {setting} {stored}, this search has {received}: "
            "trials of the two cannot be compared. Use the same again, or another study_name"
        )


class FailedTrialsError(SkcompressError, RuntimeError):
    """A search of which not one trial gave a result."""

    def __init__(self, n_trials: int, first: str):
        if not n_trials:
            message = "no trial was finished in time: allow a longer timeout"
        else:
            message = f"all {n_trials} trials of the search failed; the first with {first}"
        super().__init__(message)


class UnsatisfiedConstraintError(SkcompressError, ValueError):
    """A search of which no trial met the constraints.

    `nearest` is the trial that came closest, as its row in `trials_`.
    """

    def __init__(self, nearest: Mapping[str, object], missed: Sequence[str], n_trials: int):
        self.nearest = dict(nearest)
        super().__init__(
            f"none of {n_trials} trials meets the constraints. The nearest is trial "
            f"{nearest['trial']}: {'; '.join(missed)}; with {nearest['params']}. Loosen the "
            "constraints, search more trials, or widen the space"
        )


# --- pruning ---------------------------------------------------------------------------


class CriterionValueError(SkcompressError, ValueError):
    """A parameter of a criterion that has no meaning."""

    def __init__(self, owner: str, parameter: str, rule: str, received: object):
        super().__init__(f"{parameter} of {owner} must be {rule}; got {received!r}")


class AllocationValueError(SkcompressError, ValueError):
    """A parameter of an allocation that has no meaning."""

    def __init__(self, owner: str, parameter: str, rule: str, received: object):
        super().__init__(f"{parameter} of {owner} must be {rule}; got {received!r}")


class AllocationKindError(SkcompressError, TypeError):
    """An allocation of ranks where one of zeros is needed, or the other way round."""

    def __init__(self, owner: str, received: object, wanted: str, known: Sequence[str]):
        listed = ", ".join(map(repr, known))
        super().__init__(
            f"allocation of {owner} must be one that divides {wanted}; got {received!r}, which "
            f"does not. Known: {listed}"
        )


class CriterionScoreError(SkcompressError, ValueError):
    """Scores of a criterion that nothing can be chosen by."""

    def __init__(self, layer: str, criterion: str, what: str):
        super().__init__(
            f"{criterion} gives the weight of layer {layer!r} {what}: check the criterion and the "
            f"data, or leave the layer out with exclude=[{layer!r}]"
        )


class MinKeptError(SkcompressError, ValueError):
    """More values that are to stay in each weight than the sparsity leaves."""

    def __init__(self, owner: str, min_kept: object, sparsity: float, least: int, total: int):
        most = math.floor((1 - least / total) * 1e4) / 1e4
        super().__init__(
            f"min_kept={min_kept!r} of {owner} keeps {least:,} of {total:,} values, more than "
            f"sparsity={sparsity:g} leaves: lower min_kept, or ask for sparsity <= {most:g}"
        )


class HeldWeightError(SkcompressError, ValueError):
    """Zeros that are to be held in a weight that is computed from other parameters."""

    def __init__(self, layer: str):
        super().__init__(
            f"the weight of layer {layer!r} is computed from other parameters, so that no zeros "
            "can be held in it while they are trained: leave it out with "
            f"exclude=[{layer!r}], or remove the parametrization first"
        )


class ScheduleError(SkcompressError, RuntimeError):
    """A step more than a schedule has."""

    def __init__(self, n_steps: int):
        super().__init__(
            f"all {n_steps} steps of the schedule are done: call finalize(), or make a schedule "
            "with a larger n_steps"
        )
