"""From a model to a smaller one."""

from __future__ import annotations

from abc import ABC, abstractmethod
from typing import Any, ClassVar

import torch
from sklearn.base import BaseEstimator, TransformerMixin
from sklearn.utils import Tags
from torch import nn

from ..errors import InverseError
from ..spaces import SearchSpace


class Compressor(TransformerMixin, BaseEstimator, ABC):
    """An estimator whose X is a `torch.nn.Module` and which gives back a smaller one.

    The model that is passed in stays as it was, whatever happens. `plan_` and `report_`
    are learnt by `fit`; `data`, where a compressor uses it, is the second positional
    argument, so that `Pipeline.fit_transform(model, data)` hands it on.

    `fit` and `transform` are all that a search or a `Pipeline` asks for. Three things are used
    where they are there: `ranks_`, which a search notes with each trial; a parameter `measure`,
    which says whether `fit` runs the result for its report, and is False in trials; and `_shared`,
    which `fitting.memo.share` sets for a `fit` to find results of other fits in, or to None.
    """

    search_space: ClassVar[SearchSpace] = {}

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        # Tensors that are made in inference mode can never be trained, wherever they go.
        for name in ("fit", "transform", "fit_transform", "inverse_transform", "partial"):
            if name in vars(cls):
                setattr(cls, name, torch.inference_mode(False)(vars(cls)[name]))

    _shared: Any = None

    def __getstate__(self) -> dict[str, Any]:
        state: dict[str, Any] = super().__getstate__()
        return {name: value for name, value in state.items() if name != "_shared"}

    @abstractmethod
    def fit(self, model: nn.Module, data: object = None) -> Compressor:
        """Learn what to do with each layer of `model`."""

    @abstractmethod
    def transform(self, model: nn.Module) -> nn.Module:
        """Give a new, smaller model; `model` may be another one of the same architecture."""

    def fit_transform(self, model: nn.Module, data: object = None) -> nn.Module:  # type: ignore[override]
        """`fit` and `transform` of the same model."""
        return self.fit(model, data).transform(model)

    def inverse_transform(self, model: nn.Module) -> nn.Module:
        """Give back a model of ordinary layers with the same function, where that exists."""
        raise InverseError(type(self).__name__)

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        # X is a module, not a table.
        tags.input_tags.two_d_array = False
        tags.no_validation = True
        return tags
