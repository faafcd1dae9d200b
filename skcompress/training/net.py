"""A skorch net with scikit-learn's manners: what it checks, repeats and shows."""
# ruff: noqa: N803, N806 -- X is scikit-learn's own name.

from __future__ import annotations

import copy
import math
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any, ClassVar

import numpy as np
import torch
from sklearn.base import BaseEstimator
from sklearn.utils import check_random_state
from sklearn.utils.validation import validate_data
from skorch import NeuralNet
from skorch.callbacks import ProgressBar
from skorch.utils import to_tensor
from torch import nn
from torch.utils.data import DataLoader, Dataset

from ..errors import ModelCopyError
from ..randomness import same_randomness
from ..spaces import FloatRange, IntRange, SearchSpace
from .inputs import as_array, cast, is_handed_on
from .mlp import MLP
from .watching import Watchable

# What `fit` learns of the data before it makes a network.
_OF_THE_DATA = (
    "n_features_in_",
    "feature_names_in_",
    "sizes_",
    "classes_inferred_",
    "target_ndim_",
    "target_dtype_",
)


class SklearnNet(Watchable, NeuralNet):
    """A net that scikit-learn's checks accept; a subclass knows its targets."""

    # skorch sets these in its constructor, where scikit-learn wants parameters only.
    initialized_ = False
    history_ = None
    virtual_params_: ClassVar[dict[str, Any]] = {}

    search_space: ClassVar[SearchSpace] = {
        "lr": FloatRange(1e-4, 1e-2, log=True),
        "max_epochs": IntRange(10, 100, log=True),
    }

    training_ = False
    _target_checks: ClassVar[dict[str, Any]] = {}

    def __init__(
        self,
        module: Any = None,
        *,
        optimizer: Any = torch.optim.Adam,
        lr: float = 1e-3,
        max_epochs: int = 50,
        batch_size: int = 32,
        train_split: Any = None,
        verbose: int = 0,
        random_state: Any = None,
        progress_bar: bool = False,
        **skorch: Any,
    ):
        super().__init__(
            module,
            optimizer=optimizer,
            lr=lr,
            max_epochs=max_epochs,
            batch_size=batch_size,
            train_split=train_split,
            verbose=verbose,
            **skorch,
        )
        self.random_state = random_state
        self.progress_bar = progress_bar
        for name in ("initialized_", "history_", "virtual_params_"):
            del self.__dict__[name]

    def _targets(self, y: Any, classes: Any) -> np.ndarray:
        """Give y as the batches are to hold it, and learn what predictions will need."""
        raise NotImplementedError

    def _n_outputs(self, targets: np.ndarray) -> int:
        """Number of outputs of a network for such targets."""
        raise NotImplementedError

    # --- an estimator as scikit-learn knows them -----------------------------------------

    __repr__ = BaseEstimator.__repr__

    def _get_param_names(self) -> list[str]:
        return [name for name in super()._get_param_names() if not name.startswith("_")]

    def __setattr__(self, name: str, value: Any) -> None:
        # skorch forbids networks as values outside of its `initialize` methods.
        if name in ("module", "criterion"):
            self.__dict__[name] = value
        else:
            super().__setattr__(name, value)

    def set_params(self, **params: Any) -> SklearnNet:
        # skorch would build the callbacks at once; nothing is looked at before `fit`.
        if "callbacks" in params and not self.initialized_:
            self.callbacks = params.pop("callbacks")
        return super().set_params(**params)

    def __getstate__(self) -> dict[str, Any]:
        # A checkpoint is written while training, and loaded to predict.
        return {**super().__getstate__(), "training_": False}

    # --- data ----------------------------------------------------------------------------

    def _check_input(self, X: Any, y: Any, *, fresh: bool, classes: Any = None) -> tuple[Any, Any]:
        """Give X and y as skorch takes them; a fresh network is sized by them."""
        if fresh:
            for name in _OF_THE_DATA:
                self.__dict__.pop(name, None)
        if isinstance(X, Dataset):
            if fresh and self.module is None:
                pairs = DataLoader(X, batch_size=None, generator=torch.Generator())
                sizes, targets = zip(*((math.prod(np.shape(x)), t) for x, t in pairs), strict=True)
                self.sizes_ = sizes[0], self._n_outputs(np.asarray(targets))
            return X, y
        if is_handed_on(X):
            if y is None:
                raise ValueError(
                    f"{type(self).__name__} requires y to be passed, unless X is a torch "
                    "Dataset of (input, target)"
                )
            return X, self._targets(as_array(y), classes)
        X, y = validate_data(
            self,
            as_array(X),
            as_array(y),
            reset=fresh,
            allow_nd=True,
            force_writeable=True,
            **self._target_checks,
        )
        y = self._targets(y, classes)
        self.sizes_ = math.prod(X.shape[1:]), self._n_outputs(y)
        return X, y

    def check_data(self, X: Any, y: Any) -> None:
        """Nothing: `fit` has looked at X and y already."""

    def forward_iter(self, X: Any, training: bool = False, device: Any = "cpu") -> Iterator[Any]:
        if not is_handed_on(X):
            X = validate_data(self, as_array(X), reset=False, allow_nd=True, force_writeable=True)
        return super().forward_iter(X, training=training, device=device)

    def infer(self, x: Any, **fit_params: Any) -> Any:
        parameters = self.module_.parameters()
        dtype = next((p.dtype for p in parameters if p.is_floating_point()), None)
        return super().infer(cast(to_tensor(x, device=self.device), dtype), **fit_params)

    def get_params_for(self, prefix: str) -> dict[str, Any]:
        params = super().get_params_for(prefix)
        if prefix == "iterator_train" and self.iterator_train is DataLoader:
            params.setdefault("shuffle", not params.keys() & {"sampler", "batch_sampler"})
        if prefix == "iterator_valid" and self.iterator_valid is DataLoader:
            # Without one, each pass over the data draws from torch's global generator.
            params.setdefault("generator", torch.Generator())
        return params

    # --- the network ---------------------------------------------------------------------

    def get_default_callbacks(self) -> list[tuple[str, Any]]:
        bar = [("progress_bar", ProgressBar())] if self.progress_bar else []
        return [*super().get_default_callbacks(), *bar]

    def initialize_module(self) -> SklearnNet:
        self.seed_ = None
        if self.random_state is not None:
            self.seed_ = int(check_random_state(self.random_state).randint(2**31 - 1))
        if self.module is None:
            self.module_ = self._default_module()
        elif isinstance(self.module, nn.Module) and not self.get_params_for("module"):
            try:
                self.module_ = copy.deepcopy(self.module)
            except Exception as cause:
                raise ModelCopyError(cause) from cause
        else:
            with self._seeded(0):
                super().initialize_module()
        return self

    def _default_module(self) -> nn.Module:
        if not hasattr(self, "sizes_"):
            raise ValueError(
                f"{type(self).__name__} has no module, and no array or Dataset to size one by: "
                "pass a module, or call fit with one of these"
            )
        with self._seeded(0):
            return MLP(*self.sizes_, **self.get_params_for("module"))

    @contextmanager
    def _seeded(self, stage: int) -> Iterator[None]:
        """Draw the random numbers of this stage from the seed, where there is one.

        The generators are those of the process: nets in several threads take turns.
        """
        if self.seed_ is None:
            yield
            return
        device = torch.device(self.device or "cpu")
        with same_randomness(device) as turn:
            self._turn = turn
            torch.default_generator.manual_seed(self.seed_ + stage)
            if device.type == "cuda":
                with torch.cuda.device(device):
                    torch.cuda.manual_seed(self.seed_ + stage)
            try:
                yield
            finally:
                self._turn = None

    # --- training ------------------------------------------------------------------------

    def fit(self, X: Any, y: Any = None, **fit_params: Any) -> SklearnNet:
        """Train a new network.

        X : array (n, ...), torch Dataset of (input, target), or dict of arrays (n, ...)
        y : array (n,), or (n, k) for a regressor; None with a Dataset
        fit_params : handed on to the `forward` of the module
        """
        X, y = self._check_input(X, y, fresh=not (self.warm_start and self.initialized_))
        return super().fit(X, y, _checked=True, **fit_params)

    def partial_fit(
        self, X: Any, y: Any = None, classes: Any = None, **fit_params: Any
    ) -> SklearnNet:
        """Train the network further, or a new one.

        classes : all labels there will be, where the first y does not show them all
        fit_params : as in `fit`; `epochs` stands in for `max_epochs`
        """
        if not fit_params.pop("_checked", False):
            X, y = self._check_input(X, y, fresh=not self.initialized_, classes=classes)
        if not self.initialized_:
            self.initialize()
        self.training_ = True
        try:
            with self._seeded(1 + len(self.history)):
                super().partial_fit(X, y, **fit_params)
        finally:
            self.training_ = False
        self._set_training(False)
        return self

    def trim_for_prediction(self) -> None:
        # skorch would forget the criterion, which says how outputs become probabilities.
        self.predict_nonlinearity = self._get_predict_nonlinearity()
        super().trim_for_prediction()
