"""What counts as data, what its batches become, and what is refused with which words."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from skcompress.errors import (
    BatchTypeError,
    DataTypeError,
    EmptyDataError,
    NonFiniteDataError,
    OneShotDataError,
)
from skcompress.network.batches import batches

MODEL = nn.Linear(3, 2)
X = torch.arange(30.0).reshape(10, 3)


class Keywords(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer = nn.Linear(3, 2)

    def forward(self, x, attention_mask=None, *, scale=1.0):
        return scale * self.layer(x)


def inputs(data, model=MODEL, **settings):
    return [batch.args[0] for batch in batches("Mine", data, model, **settings)]


@pytest.mark.parametrize(
    "data",
    [
        X,
        X.numpy(),
        X.double().numpy(),
        X.mT.contiguous().mT,
        np.asfortranarray(X.numpy())[::1],
        [X[:4], X[4:]],
        ([X[:4].numpy(), "label"], (X[4:],)),
        DataLoader(TensorDataset(X, X), batch_size=4),
        X.clone().requires_grad_(),
    ],
    ids=range(9),
)
def test_forms_of_data(data):
    for _ in range(2):
        found = inputs(data, batch_size=4)
        assert torch.equal(torch.cat(found), X)
        assert not any(x.requires_grad for x in found)
    if not isinstance(data, list | tuple):
        assert len(batches("Mine", data, MODEL, batch_size=4)) == len(found) == 3


def test_reversed_and_read_only_arrays(recwarn):
    array = X.numpy()[::-1]
    array.flags.writeable = False
    assert torch.equal(inputs(array)[0], X.flip(0))
    assert not recwarn


def test_dtypes():
    half = nn.Linear(3, 2).half()
    assert inputs(X.double(), half)[0].dtype == torch.float16
    assert inputs(np.arange(3)[None], half)[0].dtype == torch.int64
    mixed = nn.Sequential(nn.Linear(3, 2), nn.Linear(2, 2).double())
    assert inputs(X, mixed)[0].dtype == torch.float32
    assert inputs(X.bfloat16(), nn.ReLU())[0].dtype == torch.bfloat16


def test_dicts_give_what_the_forward_accepts():
    batch = {"x": X.numpy(), "labels": X, "scale": 2.0, "attention_mask": torch.ones(10, 3)}
    (found,) = batches("Mine", [(batch, 1)], Keywords())
    assert found.args == ()
    assert set(found.kwargs) == {"x", "scale", "attention_mask"}
    assert torch.equal(found.kwargs["x"], X)
    assert found.kwargs["scale"] == 2.0
    assert found.mask.dtype == torch.bool


@pytest.mark.parametrize(
    ("data", "error", "words"),
    [
        ((x for x in [X]), OneShotDataError, r"generator can be read only once: pass list\(data\)"),
        (iter([X]), OneShotDataError, "list_iterator"),
        (torch.ones(0, 3), EmptyDataError, r"Mine is empty: got a Tensor of shape \(0, 3\)"),
        (np.ones((4, 0)), EmptyDataError, r"\(4, 0\)"),
        ([], EmptyDataError, "list"),
        (torch.tensor(1.0), EmptyDataError, r"shape \(\)"),
        (3, DataTypeError, "got an object of type int"),
        (None, DataTypeError, "NoneType"),
        ("images", DataTypeError, "str"),
        ({"x": X}, DataTypeError, r"data=\[batch\]"),
        (TensorDataset(X), DataTypeError, r"DataLoader\(dataset"),
    ],
    ids=range(11),
)
def test_refused_data(data, error, words):
    with pytest.raises(error, match=words):
        batches("Mine", data, MODEL)


@pytest.mark.parametrize(
    ("batch", "error", "words"),
    [
        (3, BatchTypeError, r"batch 1 \(counted from 0\) of the data of Mine .* got a int"),
        ((), BatchTypeError, "got a tuple"),
        (["text"], BatchTypeError, "got a str"),
        ({"y": X}, BatchTypeError, r"got a dict of \{y: Tensor\}: the forward .* takes x, att"),
        ({"x": None}, BatchTypeError, "x: NoneType"),
        (np.array(["a"]), BatchTypeError, "array of <U1"),
        (X.log(), NonFiniteDataError, r"the input in batch 1 .* has 1 NaN or infinite .*\(10, 3\)"),
        ({"x": (X / 0).numpy()}, NonFiniteDataError, "'x' in batch 1"),
    ],
    ids=str,
)
def test_refused_batches(batch, error, words):
    with pytest.raises(error, match=words):
        list(batches("Mine", [X, batch], Keywords()))


def test_a_loader_without_batches():
    loader = DataLoader(TensorDataset(X), batch_size=64, drop_last=True)
    with pytest.raises(EmptyDataError, match="DataLoader"):
        list(batches("Mine", loader, MODEL))
