"""From what people pass as `scoring` to a function of a network."""

from __future__ import annotations

import inspect
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import torch
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.metrics import get_scorer
from sklearn.utils.multiclass import type_of_target
from torch import Tensor, nn

from ..errors import MissingValidationError, ValidationShapeError
from ..network.batches import batches
from ..statistics.outputs import main_output


@dataclass(frozen=True)
class Scorer:
    """Function of a network in eval mode, and of a trial, that gives a number.

    reports : whether it may report to the trial by itself
    """

    score: Callable[[nn.Module, Any], Any]
    reports: bool

    def __call__(self, network: nn.Module, trial: Any) -> Any:
        return self.score(network, trial)


def make_scorer(owner: str, scoring: Any, validation: Any) -> Scorer:
    """Understand what people pass as `scoring`.

    scoring : callable of a model, or of a model and a trial to report to; or the name of a
        scikit-learn scorer, for `validation`, a pair (inputs, targets)
    """
    if isinstance(scoring, str):
        return Scorer(_named_scorer(owner, scoring, validation), reports=False)
    if _takes_trial(scoring):
        return Scorer(scoring, reports=True)
    return Scorer(lambda network, trial: scoring(network), reports=False)


def _takes_trial(scoring: Any) -> bool:
    try:
        parameters = inspect.signature(scoring).parameters
    except (TypeError, ValueError):  # some builtins have no signature
        return False
    return "trial" in parameters


def _named_scorer(owner: str, scoring: str, validation: Any) -> Callable[[nn.Module, Any], float]:
    scorer = get_scorer(scoring)
    if validation is None:
        raise MissingValidationError(owner, f"scoring={scoring!r}")
    if not (isinstance(validation, tuple | list) and len(validation) == 2):
        raise MissingValidationError(owner, f"scoring={scoring!r}", validation)
    inputs, targets = validation
    if isinstance(targets, Tensor):
        targets = targets.detach().cpu().numpy()
    targets = np.asarray(targets)

    def score(network: nn.Module, trial: Any) -> Any:
        outputs = _outputs(owner, network, inputs)
        if len(outputs) != len(targets):
            raise ValidationShapeError(f"{len(targets)} targets", f"{len(outputs)} rows of outputs")
        return scorer(predictor(outputs, targets), None, targets)

    return score


@torch.no_grad()
def _outputs(owner: str, network: nn.Module, inputs: Any) -> np.ndarray:
    found = []
    for batch in batches(owner, inputs, network):
        found.append(main_output(network(*batch.args, **batch.kwargs)).double().cpu().numpy())
    return np.concatenate(found)


def predictor(outputs: np.ndarray, targets: np.ndarray) -> BaseEstimator:
    """Give an estimator that predicts these outputs, whatever it is asked about.

    outputs : (n,) or (n, k), logits where the targets are discrete and k > 1
    targets : (n,) labels, 0 to k - 1 or k of any kind in sorted order; or values

    >>> predictor(np.array([[2.0, 1.0], [0.0, 3.0]]), np.array(["a", "b"])).predict(None).tolist()
    ['a', 'b']
    """
    discrete = targets.ndim == 1 and type_of_target(targets) in ("binary", "multiclass")
    if not (discrete and outputs.ndim == 2 and outputs.shape[1] > 1):
        same = outputs.size == targets.size
        return Values(outputs.reshape(targets.shape) if same else outputs)
    n_outputs = outputs.shape[1]
    labels = np.unique(targets)
    if np.issubdtype(labels.dtype, np.integer) and labels[0] >= 0 and labels[-1] < n_outputs:
        labels = np.arange(n_outputs)
    if len(labels) != n_outputs:
        raise ValidationShapeError(
            f"labels of {len(labels)} classes, {labels[:6].tolist()}", f"{n_outputs} outputs"
        )
    return Logits(outputs, labels)


class Values(RegressorMixin, BaseEstimator):
    """Regressor that knows its predictions already."""

    def __init__(self, outputs: np.ndarray):
        self.outputs = outputs

    def predict(self, inputs: object) -> np.ndarray:
        """Give the outputs."""
        return self.outputs


class Logits(ClassifierMixin, BaseEstimator):
    """Classifier that knows the logits (n, k) of its predictions already."""

    def __init__(self, outputs: np.ndarray, classes: np.ndarray):
        self.outputs = outputs
        self.classes = classes

    @property
    def classes_(self) -> np.ndarray:
        """Labels in the order of the outputs."""
        return self.classes

    @cached_property
    def _probabilities(self) -> np.ndarray:
        powers = np.exp(self.outputs - self.outputs.max(axis=1, keepdims=True))
        return powers / powers.sum(axis=1, keepdims=True)

    def predict(self, inputs: object) -> np.ndarray:
        """Give the label of the largest logit."""
        return self.classes[self.outputs.argmax(axis=1)]

    def predict_proba(self, inputs: object) -> np.ndarray:
        """Give the softmax of the logits."""
        return self._probabilities

    def decision_function(self, inputs: object) -> np.ndarray:
        """Give the logits; of two classes, how far the second is ahead."""
        two = self.outputs.shape[1] == 2
        return self.outputs[:, 1] - self.outputs[:, 0] if two else self.outputs
