"""The conformance kit of skcompress, and what it does not ask."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from skcompress_tensorly import CP, TensorTrain
from sklearn.base import clone

from skcompress import registry
from skcompress.testing import awkward_weights, check_decomposition

SMALL_CP = CP(n_ranks=4, n_iter_max=8)


@pytest.mark.parametrize(("name", "cls"), [("cp", CP), ("tensor_train", TensorTrain)])
def test_entry_point_resolves_to_the_class(name, cls):
    assert name in registry.names("decompositions")
    assert registry.resolve("decompositions", name) is cls


def test_tensor_train_conforms():
    check_decomposition(TensorTrain())
    check_decomposition(TensorTrain(n_ranks=2))


def test_cp_conforms():
    check_decomposition(SMALL_CP, exact=False)
    check_decomposition(clone(SMALL_CP).set_params(init="random", random_state=0), exact=False)


@pytest.mark.parametrize("decomposition", [SMALL_CP, TensorTrain(n_ranks=5)], ids=["cp", "tt"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_predicted_error_is_the_measured_one_at_every_rank(decomposition, dtype):
    for case, weight in awkward_weights(dtype):
        factorization = decomposition.factorize(weight)
        curve = factorization.curve
        step = max(1, len(curve.costs) // 25)
        for index in range(0, len(curve.costs), step):
            factors = factorization.factors(weight, curve.rank_at(index))
            product = dense_weight(factors)
            measured = float((product - weight).double().square().sum())
            slack = 1e-5 * curve.total
            assert abs(measured - curve.errors[index]) <= slack, (case, curve.rank_at(index))


def test_kernel_axes_of_length_one_are_passed_over():
    weight = torch.randn(6, 5, 1, 3, 1, generator=torch.Generator().manual_seed(0))
    for decomposition in (SMALL_CP, TensorTrain()):
        factorization = decomposition.factorize(weight)
        flat = decomposition.factorize(weight.reshape(6, 5, 3))
        assert np.array_equal(factorization.curve.costs, flat.curve.costs)
        assert np.allclose(factorization.curve.errors, flat.curve.errors)
        rank = factorization.curve.rank_at(len(flat.curve.costs) // 2)
        assert all(t.dim() == 5 for t in factorization.factors(weight, rank).tensors)


@pytest.mark.parametrize("cls", [CP, TensorTrain])
def test_constructor_only_remembers(cls):
    estimator = cls(n_ranks=7)
    assert clone(estimator).get_params() == estimator.get_params()
    assert repr(estimator) == f"{cls.__name__}(n_ranks=7)"


@pytest.mark.parametrize(
    ("decomposition", "message"),
    [
        (CP(init="best"), "init of CP must be 'svd' or 'random'; got 'best'"),
        (CP(n_ranks=0), "n_ranks of CP must be 1 or more; got 0"),
        (TensorTrain(n_ranks=1), "n_ranks of TensorTrain must be 2 or more; got 1"),
    ],
)
def test_bad_parameters_are_refused_when_used(decomposition, message):
    with pytest.raises(ValueError, match=message):
        decomposition.factorize(torch.ones(4, 4, 3, 3))


def dense_weight(factors) -> torch.Tensor:
    """Weight that a chain stands for, read off by sending impulses through it."""
    n_axes = factors.tensors[0].dim() - 2
    inputs = factors.tensors[0].shape[1]
    lengths = [max(t.shape[2 + axis] for t in factors.tensors) for axis in range(n_axes)]
    signal = torch.eye(inputs, dtype=factors.tensors[0].dtype)
    signal = signal.reshape(inputs, inputs, *(1,) * n_axes)
    if n_axes == 0:
        for tensor in factors.tensors:
            signal = signal @ tensor.mT
        return signal.mT
    conv = {1: torch.conv1d, 2: torch.conv2d, 3: torch.conv3d}[n_axes]
    padding = [size for length in reversed(lengths) for size in (length - 1, length - 1)]
    signal = torch.nn.functional.pad(signal, padding)
    for tensor, groups in zip(factors.tensors, factors.groups, strict=True):
        signal = conv(signal, tensor, groups=groups)
    # Convolution turns the kernel round.
    return signal.transpose(0, 1).flip(tuple(range(2, 2 + n_axes)))
