"""A study keeps the search space that it began with, whatever is installed later."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

from ..errors import SpaceChangedError
from .parameters import Parameters

_KEY = "search_space"


def require_begun(space: Parameters, study: Any) -> None:
    """Refuse a study that began with another space, before any trial of it."""
    known = study.user_attrs.get(_KEY)
    if known is not None:
        _as_begun(space, known, study.study_name)


def draw(space: Parameters, trial: Any, prefix: str) -> dict[str, Any]:
    """Draw from a space as the trial's study began with it.

    The first trial writes it to the study's user attribute "search_space"; later ones
    take from there which plugins can be chosen. A trial without a study (a fixed or a
    frozen one) takes them from its own distributions, where it has any.

    Raises
    ------
    SpaceChangedError : it cannot be had any more, or is another one
    """
    study = getattr(trial, "study", None)
    if study is None:
        return space.restricted(_choices([trial], prefix)).draw(trial, prefix)
    key = f"{_KEY}:{prefix}" if prefix else _KEY
    if key not in study.user_attrs:
        study.set_user_attr(key, space.described())
    # Another process may have written in between: what is there now holds for both.
    known = study.user_attrs[key]
    try:
        return _as_begun(space, known, study.study_name).draw(trial, prefix)
    except ValueError:
        # Or it has written after that. Then the storage, which takes one set of choices for
        # each name, tells which of the two the first trial drew from.
        labels = _choices(study.get_trials(deepcopy=False), prefix)
        recorded = {name: {"choices": found} for name, found in labels.items()}
        if all(known.get(name) == what for name, what in recorded.items()):
            raise
        agreed = space.restricted(labels)
        begun = {name: known.get(name, what) for name, what in agreed.described().items()}
        found = _as_begun(agreed, begun | recorded, study.study_name)
        study.set_user_attr(key, found.described())
        return found.draw(trial, prefix)


def _as_begun(space: Parameters, known: dict[str, Any], study: str) -> Parameters:
    labels = {name: what["choices"] for name, what in known.items() if "choices" in what}
    found = space.restricted(labels)
    now = found.described()
    if now != known:
        raise SpaceChangedError(study, _differences(known, now))
    return found


def _choices(trials: Iterable[Any], prefix: str) -> dict[str, list[Any]]:
    """Choices that trials have drawn from, by name; of each the first."""
    found: dict[str, list[Any]] = {}
    for trial in trials:
        for name, distribution in getattr(trial, "distributions", {}).items():
            if name.startswith(prefix) and hasattr(distribution, "choices"):
                found.setdefault(name.removeprefix(prefix), list(distribution.choices))
    return found


def _differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    found = []
    for name in sorted(before.keys() | now.keys()):
        was, is_ = before.get(name), now.get(name)
        if was is None:
            found.append(f"{name!r} is new ({_shown(is_)})")
        elif is_ is None:
            found.append(f"{name!r} ({_shown(was)}) is missing")
        elif gone := [c for c in was.get("choices", ()) if c not in is_.get("choices", (c,))]:
            found.append(f"{name!r} could be {', '.join(map(repr, gone))}, which it cannot now")
        elif was != is_:
            found.append(f"{name!r} was {_shown(was)}, is {_shown(is_)}")
    return found


def _shown(what: Any) -> str:
    ((kind, values),) = what.items()
    if kind == "choices":
        return "one of " + ", ".join(map(repr, values))
    low, high, *log = values
    return " ".join([kind, f"{low:g} to {high:g}", *log])
