"""What a search finds out about a model."""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from math import isfinite
from types import SimpleNamespace
from typing import Any

from sklearn.utils._param_validation import InvalidParameterError
from torch import nn

from .. import registry
from ..errors import MissingDataError, MissingValidationError, ScoreError
from ..network.batches import batches
from ..protocols import Bench, Objective
from .scoring import Scorer

# Quick to measure, and so measured of every trial, as far as there is what they need.
BESIDES = ("score", "n_parameters", "flops", "bytes", "latency")
# Other user attributes of trials.
_TAKEN = {"seconds", "seconds_training", "seconds_compressing", "ranks", "feasible", "error",
          "random_state", "constraints"}  # fmt: skip


class Measurement(SimpleNamespace):
    """Numbers by the names of objectives: None for what could not be measured.

    >>> Measurement(score=0.9, n_parameters=1000).score
    0.9
    """


def loss(found: Measurement, name: str, objective: Objective) -> float:
    """Give a number such that less is better."""
    value: float = getattr(found, name)
    return -value if objective.direction == "maximize" else value


def source_of(name: str) -> str:
    """Say what gives a number, for messages."""
    return "scoring" if name == "score" else f"objective {name!r}"


def objectives_of(owner: str, given: Any) -> dict[str, Objective]:
    """Give objectives by name, or refuse what is unknown, twice there, or nothing.

    >>> objectives_of("Search", "score")
    {'score': Score()}
    """
    each = (given,) if isinstance(given, str | Objective) else tuple(given)
    found = dict(named(one) for one in each)
    if not each or len(found) < len(each):
        raise InvalidParameterError(
            f"The 'objectives' parameter of {owner} must be one or more different names of "
            f"{', '.join(registry.names('objectives'))}, or instances. Got {given!r} instead."
        )
    return found


def written(given: Any) -> list[str]:
    """Give objectives as a study stores them: names, and instances with their settings."""
    each = (given,) if isinstance(given, str | Objective) else given
    return [one if isinstance(one, str) else repr(one) for one in each]


def named(given: Any) -> tuple[str, Objective]:
    """Give the name of an objective, and an instance."""
    objective: Objective = registry.make("objectives", given)
    name = given if isinstance(given, str) else objective.name
    if not re.fullmatch(r"[A-Za-z_]\w*", name) or name in _TAKEN:
        raise InvalidParameterError(
            f"The 'name' of {type(objective).__name__} must be a word of letters, digits and _ "
            f"that trials have no other use for. Got {name!r} instead."
        )
    return name, objective


@dataclass(frozen=True)
class Meter:
    """Measures models, all in the same way.

    objectives : all that is measured, by name
    decisive : names of those that the search is about
    bench : what there is to measure with, but for the score
    scorer : of a model in eval mode and a trial; None where no score is asked for
    """

    objectives: Mapping[str, Objective]
    decisive: frozenset[str]
    bench: Bench
    scorer: Scorer | None

    @classmethod
    def of(
        cls, owner: str, wanted: Mapping[str, Objective], bench: Bench, scorer: Scorer | None
    ) -> Meter:
        """Measure what is wanted, and besides what can be had.

        Raises
        ------
        MissingDataError, MissingValidationError : what an objective needs, and is not there
        """
        have = {name for name, value in vars(bench).items() if value is not None}
        have |= set() if scorer is None else {"score"}
        for name, objective in wanted.items():
            for need in [need for need in objective.needs if need not in have]:
                if need == "score":
                    raise InvalidParameterError(
                        f"The 'scoring' parameter of {owner} must be a callable or a name, since "
                        f"the {name} is an objective or in a constraint. Got None instead."
                    )
                if need == "validation":
                    raise MissingValidationError(owner, source_of(name))
                raise MissingDataError(owner, source_of(name))
        besides = {name: wanted.get(name) or named(name)[1] for name in BESIDES}
        found = {name: one for name, one in besides.items() if have.issuperset(one.needs)}
        return cls({**found, **wanted}, frozenset(wanted), bench, scorer)

    @property
    def alone(self) -> bool:
        """Whether something that decides is measured while no other trial computes."""
        return any(self.objectives[name].timed for name in self.decisive)

    def measurement(self, found: Mapping[str, Any]) -> Measurement:
        """Give what was found out, of all that there is to find out."""
        names = dict.fromkeys((*BESIDES, *self.objectives))
        return Measurement(**{name: found.get(name) for name in names})

    def names(self, *, timed: bool) -> list[str]:
        """Names of what is timed, or of what is not, as it is to be measured.

        What is counted is known whatever fails; who scores may leave the model in any state.
        """
        asked = [(name, one) for name, one in self.objectives.items() if one.timed == timed]
        asked.sort(key=lambda pair: (not pair[1].counted, "score" in pair[1].needs))
        return [name for name, _ in asked]

    def measure(self, name: str, model: nn.Module, trial: Any) -> float:
        """Measure one number of a model in eval mode."""
        score = None if self.scorer is None else partial(self.scorer, trial=trial)
        bench = replace(self.bench, score=score, decisive=name in self.decisive)
        given = self.objectives[name].measure(model, bench)
        try:
            value = int(given) if self.objectives[name].counted else float(given)
        except (TypeError, ValueError, RuntimeError, OverflowError):
            raise ScoreError(source_of(name), given) from None
        if not isfinite(value):
            raise ScoreError(source_of(name), given)
        return value


def example_of(owner: str, sources: Iterable[object], model: nn.Module) -> Any:
    """Give arguments and keyword arguments of one forward: of the first input there is, or None.

    sources : data, any of which may be None: of a tensor or an array its first row, of
        anything else its first batch
    """
    for data in sources:
        if data is not None:
            first = next(iter(batches(owner, data, model, batch_size=1)))
            return first.args, first.kwargs
    return None
