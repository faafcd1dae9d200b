"""Training with a penalty, and compression of what was trained."""
# ruff: noqa: N803 -- X is scikit-learn's own name.

from __future__ import annotations

import warnings
from typing import Any, ClassVar

import torch
from sklearn.base import clone
from sklearn.utils.validation import check_is_fitted
from skorch import NeuralNet
from torch import Tensor
from torch.nn.parameter import is_lazy

from .. import registry
from ..penalties import mean_penalty
from ..protocols import Compressor
from ..spaces import Plugins, SearchSpace
from .net import SklearnNet
from .watching import uncompiled


class SmoothNet(SklearnNet):
    """A net with a regularizer and a compressor."""

    search_space: ClassVar[SearchSpace] = {
        "regularizer": Plugins("regularizers", by_name=True),
        "compressor": Plugins("compressors", by_name=True, choose=False),
    }

    prefixes_: ClassVar[list[str]] = [*NeuralNet.prefixes_, "regularizer", "compressor"]
    cuda_dependent_attributes_: ClassVar[list[str]] = ["dense_module_", "compressor_"]

    def __init__(
        self,
        module: Any = None,
        regularizer: Any = "nuclear_norm",
        compressor: Any = None,
        **parameters: Any,
    ):
        # First, since `get_params` goes by order and settings are to come before those of
        # the instances.
        self.regularizer = regularizer
        self.compressor = compressor
        super().__init__(module, **parameters)

    def initialize_virtual_params(self) -> None:
        super().initialize_virtual_params()
        self._register_virtual_param(["regularizer", "regularizer__*"], _change_regularizer)
        self._register_virtual_param(["compressor", "compressor__*"])

    def initialize_module(self) -> SmoothNet:
        self.__dict__.pop("dense_module_", None)
        self.regularizer_ = self._plugin("regularizer")
        return super().initialize_module()

    def on_train_begin(self, net: Any, **kwargs: Any) -> None:
        self.compressor_ = self._plugin("compressor")
        if "dense_module_" in self.__dict__:
            self.module_ = self.dense_module_
        else:
            self._rehearse()
        super().on_train_begin(net, **kwargs)

    def partial_fit(
        self, X: Any, y: Any = None, classes: Any = None, **fit_params: Any
    ) -> SmoothNet:
        """Train the dense network further, or a new one; then compress it, again.

        classes : all labels there will be, where the first y does not show them all
        fit_params : as in `fit`; `epochs` stands in for `max_epochs`
        """
        super().partial_fit(X, y, classes, **fit_params)
        # Not as an attribute, which skorch would train and save as one more module.
        self.__dict__["dense_module_"] = self.module_
        self._compress(None)
        return self

    def compress(self, data: object = None) -> SmoothNet:
        """Compress what was trained with the compressor as it is set now, once or again.

        data : what the compressor is fitted with, as `Compressor.fit` takes it: a few hundred
            inputs without labels; None for the weights alone
        """
        check_is_fitted(self, "dense_module_")
        self.compressor_ = self._plugin("compressor")
        self._compress(data)
        return self

    def _compress(self, data: object) -> None:
        self.module_ = self.dense_module_
        if self.compressor_ is not None:
            given = () if data is None else (data,)  # which not every `fit_transform` takes
            small = self.compressor_.fit_transform(uncompiled(self.dense_module_), *given)
            self.module_ = self.torch_compile(small, name="module")

    def _plugin(self, parameter: str) -> Any:
        """Give a copy of what `parameter` names, with the settings `parameter__...`."""
        value, settings = getattr(self, parameter), self.get_params_for(parameter)
        if value is None:
            for name in settings:
                message = f"{parameter}__{name} has no effect, since {parameter} is None"
                warnings.warn(message, stacklevel=2)
            return None
        if parameter == "regularizer":
            value = registry.make("regularizers", value)
        elif isinstance(value, type) or not hasattr(value, "fit_transform"):
            value = registry.make("compressors", value)
        plugin = clone(value, safe=False)
        return plugin.set_params(**settings) if settings else plugin

    def _rehearse(self) -> None:
        """Raise now what penalty and compressor have against the network, not in the end."""
        module = uncompiled(self.module_)
        if any(map(is_lazy, module.parameters())):
            return
        if self.regularizer_ is not None:
            mean_penalty(self.regularizer_, module)
        # What a pipeline's later steps can do may depend on the weights.
        if isinstance(self.compressor_, Compressor):
            clone(self.compressor_).fit(module)

    def trim_for_prediction(self) -> None:
        super().trim_for_prediction()
        self.__dict__.pop("dense_module_", None)

    # --- the penalty ---------------------------------------------------------------------

    def on_grad_computed(self, net: Any, named_parameters: Any, **kwargs: Any) -> None:
        # skorch calls this before the callbacks of the same name, so that those that clip
        # or log gradients see all of it, and again for each evaluation of a line search.
        super().on_grad_computed(net, named_parameters, **kwargs)
        if self.regularizer_ is not None:
            self.regularizer_.add_grad_(self.module_)

    def _step_optimizer(self, step_fn: Any) -> None:
        # LBFGS compares losses, which must be those that the gradients belong to. No other
        # optimizer of torch looks at the value.
        if self.regularizer_ is not None and isinstance(self.optimizer_, torch.optim.LBFGS):
            data_loss = step_fn

            def step_fn() -> Tensor:
                return data_loss().detach() + mean_penalty(self.regularizer_, self.module_)

        super()._step_optimizer(step_fn)

    def on_epoch_end(self, net: Any, **kwargs: Any) -> None:
        if self.regularizer_ is not None:
            self.history.record("penalty", mean_penalty(self.regularizer_, self.module_))
        super().on_epoch_end(net, **kwargs)


def _change_regularizer(net: SmoothNet, name: str, value: Any) -> None:
    """Take another penalty from now on: callbacks set parameters amid training."""
    setattr(net, name, value)
    net.regularizer_ = net._plugin("regularizer")


def taken_apart(net: SmoothNet) -> tuple[SmoothNet, Any]:
    """Give a net with the same settings that only trains, and the compressor; neither fitted.

    The compressor is None where there is none.
    """
    settings = net.get_params(deep=False)
    own = {n: value for n, value in settings.items() if n.partition("__")[0] != "compressor"}
    return clone(type(net)(**own)), net._plugin("compressor")
