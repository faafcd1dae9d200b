"""The words in which a class declares what of it is worth searching."""

from __future__ import annotations

import math

import pytest

from skcompress.errors import SearchDeclarationError, SearchRangeError
from skcompress.protocols import Regularizer
from skcompress.spaces import FloatRange, IntRange, Options, declared_space


class Base(Regularizer):
    search_space = {"power": FloatRange(1.0, 2.0), "axes": Options(("in", "out"))}  # noqa: RUF012

    def penalty(self, weight):
        return weight.sum()


class Narrow(Base):
    search_space = {"power": FloatRange(1.0, 1.5), "axes": None}  # noqa: RUF012


def test_classes_inherit_entry_by_entry():
    weight = declared_space(Regularizer)["weight"]
    assert declared_space(Base) == {
        "axes": Options(("in", "out")),
        "power": FloatRange(1.0, 2.0),
        "weight": weight,
    }
    assert declared_space(Narrow()) == {"power": FloatRange(1.0, 1.5), "weight": weight}
    assert list(declared_space(Base)) == ["axes", "power", "weight"]


def test_other_classes_declare_nothing():
    assert declared_space(object()) == {}


@pytest.mark.parametrize(
    ("make", "parameter"),
    [
        (lambda: FloatRange(0.5, 0.1), "low of FloatRange must be at most high, 0.1; got 0.5"),
        (lambda: FloatRange(0, 1, log=True), "low of FloatRange must be above 0 with log=True"),
        (lambda: FloatRange(0, math.inf), "high of FloatRange must be a finite number; got inf"),
        (lambda: FloatRange("0", 1), "low of FloatRange must be a finite number; got '0'"),
        (lambda: IntRange(1, 2.5), "high of IntRange must be a whole number; got 2.5"),
        (lambda: IntRange(False, 2), "low of IntRange must be a whole number; got False"),
        (lambda: Options(()), r"values of Options must be at least one; got \(\)"),
        (lambda: Options("abc"), "values of Options must be a tuple of values, or a mapping"),
        (lambda: Options((1, True)), "values of Options must be different from each other"),
        (lambda: Options(((64,), (64, 64))), "pass a mapping of label to value; got"),
    ],
)
def test_ranges_that_nothing_can_be_drawn_from(make, parameter):
    with pytest.raises(SearchRangeError, match=parameter):
        make()


def test_options_with_labels():
    options = Options({"one": (64,), "two": (64, 64)})
    assert options.labels == ("one", "two")
    assert options.items == [("one", (64,)), ("two", (64, 64))]
    assert Options((None, 1, "a")).items == [(None, None), (1, 1), ("a", "a")]


@pytest.mark.parametrize("declared", [[("p", FloatRange(0, 1))], {"p": (0, 1)}])
def test_declarations_that_are_none(declared):
    cls = type("Odd", (Regularizer,), {"search_space": declared, "penalty": Base.penalty})
    with pytest.raises(SearchDeclarationError, match="search_space of Odd must map names"):
        declared_space(cls)
