"""Conditions that a result has to meet, written as people say them.

>>> condition = parse("score >= dense - 0.01")
>>> condition.bound(0.93)
0.92
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass
from typing import Any

from .. import registry
from ..errors import ConstraintError
from ..protocols import Objective
from .measuring import Measurement, named

_NUMBER = r"[+-]?(?:\d+\.?\d*|\.\d+)(?:[eE][+-]?\d+)?"
_FORM = re.compile(
    rf"\s*(?P<name>\w+)\s*(?P<side>>=|<=)\s*(?:(?P<value>{_NUMBER})"
    rf"|(?P<factor>{_NUMBER})\s*\*\s*dense|dense(?:\s*(?P<sign>[+-])\s*(?P<step>{_NUMBER}))?)\s*"
)
# Of the size of the bound: what rounding may do to 0.97 - 0.01.
_ROUNDING = 1e-9


@dataclass(frozen=True)
class Constraint:
    """A quantity, and a bound of the form factor * dense + step.

    text : as it was written
    name : of the quantity, an objective
    at_least : whether the bound is a lower one
    """

    text: str
    name: str
    at_least: bool
    factor: float
    step: float

    def bound(self, dense: float) -> float:
        """Give the bound, where the uncompressed model has `dense` of the quantity."""
        return self.factor * dense + self.step

    def excess(self, found: Measurement, dense: Measurement) -> float:
        """Say by how much the bound is missed, in units of the dense value; 0 or less if met."""
        value, reference = getattr(found, self.name), getattr(dense, self.name)
        bound = self.bound(reference)
        missed = bound - value if self.at_least else value - bound
        return float(missed - _ROUNDING * max(1.0, abs(bound))) / (abs(reference) or 1.0)

    def describe(self, found: Measurement, dense: Measurement) -> str:
        """Say what was found and what was asked, where it is missed."""
        value, bound = getattr(found, self.name), self.bound(getattr(dense, self.name))
        side = "at least" if self.at_least else "at most"
        return f"{self.name} is {value:.6g}, and {self.text!r} asks for {side} {bound:.6g}"


def parse(text: Any, known: Collection[str] | None = None) -> Constraint:
    """Read one condition: a quantity, >= or <=, and a number, maybe in terms of `dense`.

    `dense` is what the uncompressed model has: "score >= dense - 0.01",
    "n_parameters <= 0.3 * dense", "latency <= 0.002".

    known : names of quantities; None for the registered objectives
    """
    known = registry.names("objectives") if known is None else known
    match = _FORM.fullmatch(text) if isinstance(text, str) else None
    if match is None or match["name"] not in known:
        raise ConstraintError(text, sorted(known))
    if match["value"] is not None:
        factor, step = 0.0, float(match["value"])
    elif match["factor"] is not None:
        factor, step = float(match["factor"]), 0.0
    else:
        factor, step = 1.0, float(match["step"] or 0) * (-1 if match["sign"] == "-" else 1)
    return Constraint(text, match["name"], match["side"] == ">=", factor, step)


def parse_all(
    given: Any, objectives: Mapping[str, Objective]
) -> tuple[tuple[Constraint, ...], dict[str, Objective]]:
    """Read no condition, one, or several; give what they are about too, by name.

    given : conditions, and pairs of an objective and a condition without a name:
        (MyObjective(), "<= 0.3 * dense")
    objectives : those that conditions may name besides the registered ones
    """
    found, about = [], {}
    for one in () if given is None else (given,) if isinstance(given, str) else given:
        text, known = one, dict(objectives)
        if isinstance(one, tuple | list) and len(one) == 2 and isinstance(one[0], Objective):
            name, objective = named(one[0])
            text, known = f"{name} {one[1]}", {name: objective}
        constraint = parse(text, {*registry.names("objectives"), *known})
        found.append(constraint)
        about[constraint.name] = known.get(constraint.name) or named(constraint.name)[1]
    return tuple(found), about
