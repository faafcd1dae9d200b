"""Inputs in the forms that scikit-learn, skorch and the network take."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from scipy.sparse import issparse
from skorch.helper import SliceDataset
from skorch.utils import to_numpy
from torch import Tensor
from torch.utils.data import Dataset


def is_handed_on(inputs: Any) -> bool:
    """Whether skorch is to read the inputs by itself, since they are no array."""
    # Some sparse matrices are dicts too; they are refused, as scikit-learn does.
    return isinstance(inputs, Dataset | Mapping | SliceDataset) and not issparse(inputs)


def as_array(values: Any) -> Any:
    """Give a tensor as an array; anything else as it is."""
    return to_numpy(values) if isinstance(values, Tensor) else values


def cast(inputs: Any, dtype: torch.dtype | None) -> Any:
    """Give floating inputs the dtype of the network; others stay as they are."""
    if isinstance(inputs, Mapping):
        return {name: cast(value, dtype) for name, value in inputs.items()}
    if isinstance(inputs, list | tuple):
        return [cast(value, dtype) for value in inputs]
    if isinstance(inputs, Tensor) and inputs.is_floating_point():
        return inputs.to(dtype)
    return inputs
