"""A study keeps the search space that it began with, whatever is installed later."""

from __future__ import annotations

from typing import Any

from ..errors import SpaceChangedError
from .tree import Tree

_KEY = "search_space"


def require_begun(tree: Tree, study: Any) -> None:
    """Refuse a study that began with another space, before any trial of it."""
    known = study.user_attrs.get(_KEY)
    if known is not None:
        _as_begun(tree, known, study.study_name)


def draw(tree: Tree, trial: Any, prefix: str) -> dict[str, Any]:
    """Draw from the tree as the trial's study began with it.

    The first trial writes it to the study's user attribute "search_space"; later ones
    take from there which plugins can be chosen. A trial without a study (a fixed or a
    frozen one) takes them from its own distributions, where it has any.

    Raises
    ------
    SpaceChangedError : it cannot be had any more, or is another one
    """
    study = getattr(trial, "study", None)
    if study is None:
        own = _choices(getattr(trial, "distributions", {}), prefix)
        return tree.restricted(own).draw(trial, prefix)
    key = f"{_KEY}:{prefix}" if prefix else _KEY
    known = study.user_attrs.get(key)
    if known is None:
        study.set_user_attr(key, tree.described())
        # Another process may have written in between: what is there now holds for both.
        known = study.user_attrs[key]
    try:
        return _as_begun(tree, known, study.study_name).draw(trial, prefix)
    except ValueError:
        # Or it has written after that. Then the storage, which takes one set of choices for
        # each name, tells which of the two the first trial drew from.
        recorded = _recorded(study, prefix)
        if all(known.get(name) == what for name, what in recorded.items()):
            raise
        agreed = tree.restricted({name: what["choices"] for name, what in recorded.items()})
        begun = {name: known.get(name, what) for name, what in agreed.described().items()}
        found = _as_begun(agreed, begun | recorded, study.study_name)
        study.set_user_attr(key, found.described())
        return found.draw(trial, prefix)


def _as_begun(tree: Tree, known: dict[str, Any], study: str) -> Tree:
    labels = {name: what["choices"] for name, what in known.items() if "choices" in what}
    found = tree.restricted(labels)
    now = found.described()
    if now != known:
        raise SpaceChangedError(study, _differences(known, now))
    return found


def _recorded(study: Any, prefix: str) -> dict[str, Any]:
    """Choices that trials of the study have drawn from, by name."""
    found: dict[str, Any] = {}
    for trial in study.get_trials(deepcopy=False):
        for name, choices in _choices(trial.distributions, prefix).items():
            found.setdefault(name, {"choices": list(choices)})
    return found


def _choices(distributions: dict[str, Any], prefix: str) -> dict[str, Any]:
    return {
        name.removeprefix(prefix): distribution.choices
        for name, distribution in distributions.items()
        if name.startswith(prefix) and hasattr(distribution, "choices")
    }


def _differences(before: dict[str, Any], now: dict[str, Any]) -> list[str]:
    found = []
    for name in sorted(before.keys() | now.keys()):
        was, is_ = before.get(name), now.get(name)
        if was == is_:
            continue
        if was is None:
            found.append(f"{name!r} is new ({_shown(is_)})")
        elif is_ is None:
            found.append(f"{name!r} ({_shown(was)}) is missing")
        elif (
            "choices" in was
            and is_.get("choices", was) != was
            and (gone := [c for c in was["choices"] if c not in is_["choices"]])
        ):
            listed = ", ".join(map(repr, gone))
            found.append(f"{name!r} could be {listed}, which it cannot now")
        else:
            found.append(f"{name!r} was {_shown(was)}, is {_shown(is_)}")
    return found


def _shown(what: Any) -> str:
    ((kind, values),) = what.items()
    if kind == "choices":
        return "one of " + ", ".join(map(repr, values))
    low, high, *log = values
    return " ".join([kind, f"{low:g} to {high:g}", *log])
