"""From what people pass as `estimator` and `space` to what is searched."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import optuna
from sklearn.base import clone
from sklearn.utils._param_validation import InvalidParameterError

from .. import registry
from ..errors import EstimatorTypeError
from .frozen import draw, require_begun
from .parameters import Parameters
from .space import search_space
from .training import trainer_of


@dataclass(frozen=True)
class Candidates:
    """What is searched: one estimator, or the choice between several.

    one : the estimator; None where a trial chooses it
    space : names and ranges, as `suggest_params` has them, or `suggest_estimator` for several
    first : the estimator, or the first of several
    """

    one: Any
    space: Parameters
    first: Any

    def label(self, trial: Any) -> Any:
        """Say which of several a trial chose; None where there is one."""
        return None if self.one is not None else trial.params["estimator"]

    def require_begun(self, study: optuna.Study) -> None:
        """Refuse a study that began with another space, before any trial."""
        require_begun(self.space, study)

    def drawn(self, trial: Any, seed: int) -> tuple[Any, dict[str, Any]]:
        """Give an estimator as a trial chooses it, and what was set on it.

        seed : for every `random_state` in it that is None
        """
        params = draw(self.space, trial, "")
        found = params["estimator"] if self.one is None else clone(self.one).set_params(**params)
        return seeded(found, seed), params


def seeded(estimator: Any, seed: int) -> Any:
    """Set every `random_state` in an estimator that is None, and give the estimator."""
    seeds = {
        name: seed
        for name, value in estimator.get_params().items()
        if value is None and name.rpartition("__")[2] == "random_state"
    }
    return estimator.set_params(**seeds)


def candidates(owner: str, estimator: Any, space: Any, *, with_data: bool) -> Candidates:
    """Understand what is to be searched.

    estimator : an estimator or the name of a compressor; a list of these, or a mapping of
        label -> estimator, to choose from
    space : None for all that they declare; names or glob patterns, for those only; a mapping
        of name -> range, list of choices or value, for exactly these, with `...` for what is
        declared
    """
    only, override = space, None
    if isinstance(space, Mapping):
        # All names: a pattern says what is searched as much as what its range is.
        only, override = tuple(space), {n: given for n, given in space.items() if given is not ...}
    if isinstance(estimator, list | tuple | Mapping):
        one, searched = None, _labelled(owner, estimator)
        first = next(iter(searched.values()))
    else:
        one = searched = first = _made(owner, estimator)
    return Candidates(one, search_space(searched, only, override, with_data=with_data), first)


def trains(owner: str, estimator: Any) -> bool:
    """Whether what is to be searched trains a network before it compresses it."""
    several = list(estimator.values()) if isinstance(estimator, Mapping) else estimator
    each = several if isinstance(several, list | tuple) else [several]
    found = {trainer_of(owner, one) is not None for one in each}
    if len(found) > 1:
        raise InvalidParameterError(
            f"The 'estimator' parameter of {owner} must be compressors only, or only what trains "
            f"before it compresses: their data is not the same. Got {estimator!r} instead."
        )
    return found == {True}


def _labelled(owner: str, estimators: Any) -> dict[str, Any]:
    if isinstance(estimators, Mapping):
        named = [(str(label), value) for label, value in estimators.items()]
    else:
        named = [(e if isinstance(e, str) else type(e).__name__, e) for e in estimators]
    found = {label: _made(owner, value) for label, value in named}
    if not found or len(found) < len(named):
        raise InvalidParameterError(
            f"The 'estimator' parameter of {owner} must be one estimator, or several of "
            "different names: a mapping of label to estimator tells apart those of one class. "
            f"Got {[label for label, _ in named]} instead."
        )
    return found


def _made(owner: str, estimator: Any) -> Any:
    if isinstance(estimator, str):
        return registry.make("compressors", estimator)
    if isinstance(estimator, type):
        raise EstimatorTypeError(owner, estimator)
    if trainer_of(owner, estimator) is None and not hasattr(estimator, "fit_transform"):
        raise EstimatorTypeError(owner, estimator)
    return estimator
