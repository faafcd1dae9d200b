"""Trials that train a network before they compress it."""

from __future__ import annotations

import re
import sys
from collections.abc import Callable, Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from sklearn.pipeline import Pipeline
from sklearn.utils._param_validation import InvalidParameterError
from torch import nn
from torch.utils.data import Dataset, default_collate

from ..errors import TrainingDataError
from ..fitting.memo import Memo, share
from ..network.batches import device_of

Look = Callable[[nn.Module, int], None]
_OF_COMPRESSION = re.compile(r"(?:^|__|\.)compressor(?:$|__|\.)")


def is_trainer(estimator: Any) -> bool:
    """Whether an estimator is a `SmoothClassifier` or a `SmoothRegressor`."""
    if "skcompress.training" not in sys.modules:  # and with it skorch, which may not be installed
        return False
    from ..training.smooth import SmoothNet

    return isinstance(estimator, SmoothNet)


def trainer_of(owner: str, estimator: Any) -> Any:
    """Give what trains a network: an estimator, or the first step of a Pipeline; or None.

    Refused are trainers that come after another step, or have a network of their own.
    """
    steps = _steps(estimator)
    for name, step in steps[1:]:
        if is_trainer(step):
            raise InvalidParameterError(
                f"The 'estimator' parameter of {owner} must train before it compresses. Got the "
                f"{type(step).__name__} {name!r} after another step instead."
            )
    found = steps[0][1]
    if not is_trainer(found):
        return None
    if found.module is not None:
        raise InvalidParameterError(
            f"The 'module' parameter of the {type(found).__name__} must be None, since {owner} "
            f"trains the network that fit(model, data) is given. Got {found.module!r} instead."
        )
    return found


def training_pair(owner: str, data: Any) -> tuple[Any, Any]:
    """Give inputs and targets as a trainer takes them: of a pair, or of a torch Dataset."""
    if isinstance(data, Dataset):
        return data, None
    if isinstance(data, tuple | list) and len(data) == 2:
        return data[0], data[1]
    raise TrainingDataError(owner, data)


def first_batch(inputs: Any) -> Any:
    """Give data of the first of the inputs that a trainer takes."""
    if isinstance(inputs, Dataset):
        return [default_collate([next(iter(inputs))])]
    if isinstance(inputs, Mapping):
        return [{name: value[:1] for name, value in inputs.items()}]
    return inputs[:1] if isinstance(inputs, torch.Tensor) else np.asarray(inputs[:1])


def require_device(net: Any, model: nn.Module) -> None:
    """Refuse to train a network elsewhere than where it is, which is where it is measured."""
    there = device_of(model)
    wanted = there if net.device is None else torch.device(net.device)
    if wanted.type != there.type or wanted.index not in (None, there.index):
        raise InvalidParameterError(
            f"The 'device' parameter of the {type(net).__name__} must be that of the model, "
            f"{str(there)!r}. Got {net.device!r} instead."
        )


@dataclass(frozen=True)
class Training:
    """What trials train: copies of one network, on the same data.

    model : with the weights that each training begins with
    inputs, targets : as `SmoothClassifier.fit` takes them
    shared : keeps what was trained. It is for one model and one data set only, since they are no
        part of what a training is found again by.
    """

    model: nn.Module
    inputs: Any
    targets: Any
    shared: Memo

    def trained(self, net: Any, key: Hashable | None, look: Look | None = None) -> Any:
        """Give a net like this one that was trained: now, or for an earlier trial.

        key : settings of the training; None for nothing to be kept
        look : is shown the network before the first epoch and after each, if it is trained now
        """
        return self.shared.get(key, lambda: self._train(net, look))

    def _train(self, net: Any, look: Look | None) -> Any:
        from ..training.watching import watched

        require_device(net, self.model)
        net.set_params(module=self.model)
        with watched(net, look):
            return net.fit(self.inputs, self.targets)


@dataclass(frozen=True)
class Parts:
    """An estimator that trains and compresses, as the two that it consists of.

    net : only trains
    inner : compressor of the estimator that trains, None without
    steps : those that come behind it in a Pipeline
    """

    net: Any
    inner: Any
    steps: tuple[tuple[str, Any], ...]

    @classmethod
    def of(cls, estimator: Any) -> Parts:
        """Take an estimator apart: a trainer, or a Pipeline that begins with one."""
        from ..training.smooth import taken_apart

        first, *rest = [step for _, step in _steps(estimator)]
        net, inner = taken_apart(first)
        names = [name for name, _ in _steps(estimator)[1:]]
        steps = [pair for pair in zip(names, rest, strict=True) if hasattr(pair[1], "fit")]
        return cls(net, inner, tuple(steps))

    @property
    def compressor(self) -> Any:
        """Compresses what was trained; None where nothing does."""
        return _joined(self.inner, self.steps)


@dataclass(frozen=True)
class Rebuilt:
    """A trial as it is had again: all is fitted.

    compressor : the estimator itself where nothing was trained; None where nothing compresses
    dense : what was compressed
    """

    estimator: Any
    compressor: Any
    dense: nn.Module
    model: nn.Module


def refitted(estimator: Any, parts: Parts, net: Any, data: object) -> Rebuilt:
    """Compress a trained network as the estimator does, and give all as if it had been fitted.

    net : trained, belongs to the estimator from now on
    """
    dense = dense_network(net)
    net.set_params(compressor=parts.inner).compress(data)
    small, steps = dense_network(net), list(parts.steps)
    if steps:
        behind = Pipeline(steps)
        small, steps = behind.fit_transform(small, data), behind.steps
    if isinstance(estimator, Pipeline):
        fitted = {_steps(estimator)[0][0]: net, **dict(steps)}
        estimator.steps = [(name, fitted.get(name, step)) for name, step in estimator.steps]
    else:
        estimator = net
    compressor = _joined(net.compressor_, steps)
    for part in (estimator, compressor):
        if part is not None:
            share(part, None)
    return Rebuilt(estimator, compressor, dense, small)


def dense_network(net: Any) -> nn.Module:
    """Give the network of a trained net as a plain one."""
    from ..training.watching import uncompiled

    return uncompiled(net.module_)


def _steps(estimator: Any) -> list[tuple[str, Any]]:
    return list(estimator.steps) if isinstance(estimator, Pipeline) else [("", estimator)]


def _joined(inner: Any, steps: Iterable[tuple[str, Any]]) -> Any:
    """Give compressors, one behind the other, as one; None where there is none."""
    every = [*([] if inner is None else [("compressor", inner)]), *steps]
    if len(every) < 2:
        return every[0][1] if every else None
    return Pipeline(every)


def training_key(params: Mapping[str, Any], estimator: Any, label: str | None) -> Hashable:
    """Give those parameters of a trial that its training depends on.

    params : by the names of the study
    estimator : as it was drawn; label : of it, where it was chosen among several
    """
    before = "" if label is None else f"estimator.{label}."
    first = _steps(estimator)[0][0]
    of_the_net = re.compile(rf"{re.escape(first)}(?:$|__|\.)" if first else "")

    def matters(name: str) -> bool:
        inner = name.removeprefix(before)
        return bool(of_the_net.match(inner)) and not _OF_COMPRESSION.search(inner)

    return tuple((name, params[name]) for name in sorted(params) if matters(name)), label
