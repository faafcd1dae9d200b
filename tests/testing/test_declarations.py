"""The kit finds what is wrong with a `search_space`."""

from __future__ import annotations

import pytest
import torch

from skcompress.allocations.uniform import Uniform
from skcompress.compressors.svd import SVDCompressor
from skcompress.decompositions.svd import SVD
from skcompress.protocols import Allocation, Compressor, Criterion, Decomposition, Regularizer
from skcompress.regularizers.schatten import SchattenNorm
from skcompress.spaces import FloatRange, IntRange, Options, Plugins
from skcompress.testing import (
    check_allocation,
    check_compressor,
    check_criterion,
    check_decomposition,
    check_regularizer,
)


class Magnitude(Criterion):
    """Scores with a power, which must not be negative."""

    def __init__(self, power=1.0):
        self.power = power

    def scores(self, weight):
        return weight.abs() ** self.power if self.power >= 0 else -weight.abs()


class Powered(Uniform):
    """Refuses any exponent but 1."""

    def __init__(self, exponent=1):
        self.exponent = exponent

    def allocate(self, layers, rank, n_fixed):
        if self.exponent != 1:
            raise ValueError(self.exponent)
        return super().allocate(layers, rank, n_fixed)


CASES = {
    Regularizer: (check_regularizer, SchattenNorm, {"p": FloatRange(-1.0, 1.0)}),
    Decomposition: (check_decomposition, SVD, {"unfolding": Options(("output", "sideways"))}),
    Allocation: (check_allocation, Powered, {"exponent": IntRange(1, 2)}),
    Criterion: (check_criterion, Magnitude, {"power": FloatRange(-1.0, 1.0)}),
    Compressor: (check_compressor, SVDCompressor, {"rank": FloatRange(0.1, 1.5)}),
}


def declaring(cls, space):
    return type(cls.__name__, (cls,), {"search_space": space, "__module__": __name__})


@pytest.fixture
def picklable(monkeypatch):
    def keep(cls):
        monkeypatch.setitem(globals(), cls.__name__, cls)
        return cls

    return keep


@pytest.mark.parametrize("kind", CASES, ids=lambda kind: kind.__name__)
def test_values_that_do_not_work(kind, picklable):
    check, cls, space = CASES[kind]
    check(cls())
    with pytest.raises((AssertionError, ValueError)):
        check(picklable(declaring(cls, space))())


@pytest.mark.parametrize("kind", CASES, ids=lambda kind: kind.__name__)
def test_names_that_are_no_parameter(kind, picklable):
    check, cls, _ = CASES[kind]
    plugin = picklable(declaring(cls, {"strength": FloatRange(0.0, 1.0)}))()
    with pytest.raises(AssertionError, match="'strength', which is no parameter"):
        check(plugin)


def test_kinds_that_are_not_there(picklable):
    plugin = picklable(declaring(SVDCompressor, {"allocation": Plugins("alocations")}))()
    with pytest.raises(ValueError, match="no plugin kind is named 'alocations'"):
        check_compressor(plugin)


def test_the_message_names_parameter_and_value(picklable):
    plugin = picklable(declaring(Magnitude, {"power": FloatRange(-1.0, 1.0)}))()
    with pytest.raises(AssertionError, match=r"Magnitude\(power=-1.0\), of its search_space"):
        check_criterion(plugin)
    assert torch.equal(Magnitude().scores(torch.tensor([-2.0])), torch.tensor([2.0]))
