"""Samples that count more than others: by their class, or one by one."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from numbers import Real
from typing import Any

import numpy as np
import torch
from torch import Tensor

from ..errors import SampleWeightError
from .batches import Batch, Batches, n_samples


def weighted(data: Batches, class_weight: Any = None, sample_weight: Any = None) -> Batches:
    """Give batches whose moments and gradients weigh each sample.

    class_weight : None for alike; "balanced" for weights inversely proportional to how often
        each label occurs, as in scikit-learn; or a dict of label -> weight, 1 for labels that
        it does not have
    sample_weight : array (n,) of non-negative weights, in the order in which the data is read

    The two are multiplied. Labels are `Batch.labels`.

    >>> from skcompress.network.batches import batches
    >>> model = torch.nn.Linear(3, 2)
    >>> data = batches("Mine", [(torch.zeros(3, 3), torch.tensor([0, 0, 1]))], model)
    >>> [batch.weights.tolist() for batch in weighted(data, class_weight={1: 2.0})]
    [[1.0, 1.0, 2.0]]
    """
    if class_weight is None and sample_weight is None:
        return data
    by_class = None if class_weight is None else class_weights(data, class_weight)
    by_sample = None if sample_weight is None else _checked(data.owner, sample_weight)

    def weigh(batch: Batch, start: int) -> Tensor:
        n = n_samples(batch)
        weights = np.ones(n)
        if by_sample is not None:
            weights = by_sample[start : start + n]
            if len(weights) < n:
                why = f"has {len(by_sample)} values, fewer than the data has samples"
                raise SampleWeightError(data.owner, "sample_weight", why)
        if by_class is not None:
            labels = _labels(data.owner, batch).tolist()
            weights = weights * [by_class.get(label, 1.0) for label in labels]
        return torch.tensor(weights, dtype=torch.float32, device=data.device)

    return replace(data, weigh=weigh)


def class_weights(data: Batches, class_weight: Any) -> dict[int, float]:
    """Resolve weights of classes to a number for each label; "balanced" reads the data once."""
    if isinstance(class_weight, Mapping):
        given = class_weight.items()
        if not all(isinstance(w, Real) and 0 <= float(w) < np.inf for _, w in given):
            why = f"must have finite weights of at least 0; got {dict(class_weight)!r}"
            raise SampleWeightError(data.owner, "class_weight", why)
        return {int(label): float(weight) for label, weight in given}
    if class_weight != "balanced":
        why = f"must be None, 'balanced' or a dict of label to weight; got {class_weight!r}"
        raise SampleWeightError(data.owner, "class_weight", why)
    plain = replace(data, weigh=None)
    labels = np.concatenate([_labels(data.owner, batch).cpu().numpy() for batch in plain])
    values, counts = np.unique(labels, return_counts=True)
    balanced = len(labels) / (len(values) * counts)
    return dict(zip(values.tolist(), balanced.tolist(), strict=True))


def _labels(owner: str, batch: Batch) -> Tensor:
    labels, n = batch.labels, n_samples(batch)
    if labels is None:
        why = (
            "needs labels, an integer for each sample: pass batches (inputs, labels), as "
            "DataLoader(TensorDataset(inputs, labels), batch_size=64) gives them, or dicts with an "
            "item 'labels'"
        )
        raise SampleWeightError(owner, "class_weight", why)
    if len(labels) != n:
        why = f"needs one label for each of {n} samples; got {len(labels)}"
        raise SampleWeightError(owner, "class_weight", why)
    return labels


def _checked(owner: str, sample_weight: Any) -> np.ndarray:
    weights = np.asarray(sample_weight, dtype=np.float64)
    if weights.ndim != 1 or not np.isfinite(weights).all() or (weights < 0).any():
        why = f"must be finite values of at least 0, of shape (n,); got shape {weights.shape}"
        raise SampleWeightError(owner, "sample_weight", why)
    return weights
