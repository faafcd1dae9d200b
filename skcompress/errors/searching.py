"""Search spaces, studies and searches that cannot go on."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from .base import SkcompressError, described, suggestion


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
        what = described(received)
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
        why = hint or suggestion(str(name), known)
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


class ConstraintError(SkcompressError, ValueError):
    """A condition of `constraints` that is not written as one."""

    def __init__(self, received: object, known: Sequence[str]):
        super().__init__(
            f"a constraint is written as 'score >= 0.9', 'n_parameters <= 0.3 * dense' or "
            f"'score >= dense - 0.01', with one of {', '.join(known)} on the left; got {received!r}"
        )


class MissingValidationError(SkcompressError, ValueError):
    """The name of a scikit-learn scorer, or an objective, without the arrays that it needs."""

    def __init__(self, owner: str, setting: str, received: object = None):
        what = "" if received is None else f", which an object of type {type(received).__name__}"
        super().__init__(
            f"{setting} of {owner} needs validation=(inputs, targets) in fit"
            + (f"{what} is not" if what else "")
            + "; or pass a callable, scoring(model) -> float"
        )


class TrainingDataError(SkcompressError, ValueError):
    """A search that trains, without anything to train on."""

    def __init__(self, owner: str, received: object):
        what = "None" if received is None else f"an object of type {type(received).__name__}"
        super().__init__(
            f"{owner} trains in every trial: fit(model, data) needs data=(inputs, targets), or a "
            f"torch Dataset of such pairs; got {what}"
        )


class CalibrationError(SkcompressError, ValueError):
    """Inputs for compressors beside data that is for them already."""

    def __init__(self, owner: str):
        super().__init__(
            f"calibration of {owner}.fit is for estimators that train on data, such as "
            "SmoothClassifier(); compressors are fitted with data: fit(model, inputs)"
        )


class NoCompressorError(SkcompressError, ValueError):
    """Compression by a search whose estimator only trains."""

    def __init__(self, owner: str):
        super().__init__(
            f"what {owner} has found only trains: give it a compressor, such as "
            'SmoothClassifier(compressor="svd"); best_model_ is what it trained'
        )


class ValidationShapeError(SkcompressError, ValueError):
    """Validation targets that do not go with what the network gives."""

    def __init__(self, targets: str, outputs: str):
        super().__init__(
            f"validation has {targets}, and the network gives {outputs}: the two must go "
            "together, or pass a callable, scoring(model) -> float"
        )


class ScoreError(SkcompressError, ValueError):
    """A score, or what another objective gives, that is not a finite number."""

    def __init__(self, source: str, received: object):
        super().__init__(f"{source} must give a finite number; got {received!r}")


class DenseScoreError(SkcompressError, ValueError):
    """A `scoring` or an objective that fails for the uncompressed model, and so in every trial."""

    def __init__(self, source: str, cause: BaseException):
        super().__init__(
            f"{source} fails for the uncompressed model: {type(cause).__name__}: {cause}"
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
