"""Parameters of any estimator, drawn by an Optuna trial."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from typing import Any

from sklearn.base import clone

from ..errors import EstimatorTypeError
from .frozen import draw
from .parameters import is_estimator
from .space import search_space


def suggest_params(
    trial: Any,
    estimator: Any,
    prefix: str = "",
    only: str | Iterable[str] | None = None,
    override: Mapping[str, Any] | None = None,
    *,
    with_data: bool = False,
) -> dict[str, Any]:
    """Let a trial choose parameters of an estimator, from what its class declares.

    The result is for `set_params`. The estimator is not changed.

    trial : optuna.Trial, or anything with `suggest_float`, `suggest_int` and
        `suggest_categorical`. A finished trial (`study.best_trial`) gives the parameters
        that it had.
    estimator : compressor, regularizer, classifier, `Pipeline`, ...: whatever has
        parameters of which some are declared by a `search_space`, its own or that of an
        estimator inside
    prefix : put before all names in the study. Estimators of one objective that are
        searched separately need different ones.
    only : names or glob patterns; nothing else is searched
    override : name or glob pattern -> another range (`skcompress.spaces`), a list of
        choices, or a value that is not searched at all; of a parameter that is a dict, a
        dict of ranges. Every parameter can be named, also those that declare nothing.
        What is named in full needs not be in `only`.
    with_data : whether the compressor will be given calibration data. Parameters that
        need it (metric, reconstruction, sensitivity, ...) are searched only then.

    Names, in `only` and `override` as in the study: "rank"; "compressor__rank" of an
    estimator inside; "regularizer" for the choice of a plugin and
    "regularizer.nuclear_norm.weight" for what belongs to one choice. They are drawn in
    sorted order. The study keeps the space that its first trial had, as user attribute
    "search_space": plugins that are installed later take no part.

    >>> import optuna
    >>> from skcompress import SVDCompressor
    >>> trial = optuna.trial.FixedTrial({"rank": 0.5, "scheme": "auto"})
    >>> suggest_params(trial, SVDCompressor(), only=["rank", "scheme"])
    {'rank': 0.5, 'scheme': 'auto'}

    Raises
    ------
    UnknownParameterError : a name or pattern that fits nothing
    NothingToSearchError : an estimator that declares nothing
    SearchRangeError, SearchDeclarationError : a range that is none
    SpaceChangedError : the study began with another space, or with plugins that are gone
    """
    if not is_estimator(estimator):
        raise EstimatorTypeError("suggest_params", estimator)
    return draw(search_space(estimator, only, override, with_data=with_data), trial, prefix)


def suggest_estimator(
    trial: Any,
    estimator: Any,
    prefix: str = "",
    only: str | Iterable[str] | None = None,
    override: Mapping[str, Any] | None = None,
    *,
    with_data: bool = False,
) -> Any:
    """Give a new estimator with parameters, and of several the one, that a trial chooses.

    estimator : an estimator, or a mapping of name -> estimator to choose from: its names in
        the study are "estimator" and then "estimator.svd.rank" and the like
    The other arguments, and the errors, are those of `suggest_params`.

    >>> import optuna
    >>> from skcompress import SVDCompressor, TuckerCompressor
    >>> trial = optuna.trial.FixedTrial({"estimator": "tucker", "estimator.tucker.rank": 0.5})
    >>> both = {"svd": SVDCompressor(), "tucker": TuckerCompressor()}
    >>> suggest_estimator(trial, both, only="*rank")
    TuckerCompressor(rank=0.5)
    """
    several = isinstance(estimator, Mapping)
    for one in estimator.values() if several else [estimator]:
        if not is_estimator(one):
            raise EstimatorTypeError("suggest_estimator", one)
    drawn = draw(search_space(estimator, only, override, with_data=with_data), trial, prefix)
    return drawn["estimator"] if several else clone(estimator).set_params(**drawn)
