"""Compressors that learn a `Fitted`: fit, apply, or both at once."""

from __future__ import annotations

from abc import abstractmethod
from typing import TypeVar

from sklearn.utils.validation import check_is_fitted
from torch import nn

from ..fitting.fitted import Fitted
from ..protocols import Compressor
from .checks import computing

Self = TypeVar("Self", bound="FittedCompressor")


class FittedCompressor(Compressor):
    """Learns `fitted_`, and applies it."""

    fitted_: Fitted

    @abstractmethod
    def _fit(self, model: nn.Module, data: object) -> nn.Module | None:
        """Learn all there is; gives the compressed network where it was built on the way."""

    def fit(self: Self, model: nn.Module, data: object = None) -> Self:
        """Learn what to do with each layer of `model`, which stays as it is.

        model : torch.nn.Module with values
        data : unlabelled inputs, where they are asked for or make it better: a tensor, an array, a
            DataLoader, or any iterable of batches that can be read again. A batch is a
            tensor, a tuple or list whose first item is the input, or a dict of keyword
            inputs.
        """
        self._fit(model, data)
        return self

    def fit_transform(self, model: nn.Module, data: object = None) -> nn.Module:  # type: ignore[override]
        """`fit`, then `transform` of the same model; the network that was compared is given."""
        network = self._fit(model, data)
        return self.transform(model) if network is None else network

    @computing
    def transform(self, model: nn.Module) -> nn.Module:
        """Give a smaller copy of `model`, as planned.

        model : the fitted model, or another one of the same architecture: a later checkpoint, where
            no data took part; a model on the meta device, which gives the structure alone
        """
        check_is_fitted(self, "plan_")
        return self.fitted_.applied_to(model, type(self).__name__)
