"""The classifier and the regressor: what each knows of its targets."""
# ruff: noqa: N803 -- X is scikit-learn's own name.

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, ClassVar

import numpy as np
from sklearn.utils import Tags
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import column_or_1d
from skorch import NeuralNet, NeuralNetClassifier, NeuralNetRegressor
from skorch.utils import to_tensor
from torch import Tensor, nn

from .net import SklearnNet
from .smooth import SmoothNet


def _with_parameters_of(*bases: Any) -> Callable[[Any], Any]:
    """Show in a constructor's signature what its `**parameters` hands on to `bases`.

    That is where scikit-learn's `repr` and diagrams look for defaults.
    """

    def complete(init: Any) -> Any:
        *own, rest = inspect.signature(init).parameters.values()
        shown = {parameter.name: parameter for parameter in own}
        for base in bases:
            for name, parameter in inspect.signature(base.__init__).parameters.items():
                if parameter.kind not in (parameter.VAR_POSITIONAL, parameter.VAR_KEYWORD):
                    shown.setdefault(name, parameter.replace(kind=parameter.KEYWORD_ONLY))
        init.__signature__ = inspect.Signature([*shown.values(), rest])
        return init

    return complete


class SmoothClassifier(SmoothNet, NeuralNetClassifier):
    """Classifier that trains a network with smooth weights, and compresses it in the end.

    module : torch.nn.Module, class of one, or None
        Gives the logits, of shape (n, classes). An instance is copied, not trained itself.
        None: two hidden layers of width `module__hidden=64`, sized by the data.
    regularizer : str, Regularizer or None
        The penalty, from the registry or an instance (a sum too); `regularizer__weight`
        and other settings come before those of the instance, which is not changed.
    compressor : str, estimator with `fit_transform(model)` or None
        Compresses the trained network, with settings `compressor__rank`, ...; a `Pipeline`
        of compressors will do. A single `Compressor` is tried out on the untrained network
        first, so that most errors come before the training.
    random_state : int, RandomState or None
        An int: the same weights each time, without touching torch's global generator.
        None: draws from that generator, as skorch does.
    progress_bar : bool
        Show a bar for each epoch.
    **parameters : all parameters of `skorch.NeuralNetClassifier`
        Different from there: `optimizer`, `lr`, `max_epochs`, `batch_size`; batches are
        shuffled (`iterator_train__shuffle`); no `train_split`, so that all the data is
        trained on; `criterion` takes logits; nothing is printed.

    Learnt: `module_`, the network that predicts; `dense_module_`, what was trained (the
    same, without a compressor); `compressor_` with its `report_`; `regularizer_`;
    `classes_`; `history`, with the data's loss over each epoch as "train_loss", and what
    the penalty is at its end as "penalty". Both networks are left in evaluation mode.

    `partial_fit`, and `fit` with `warm_start=True`, train the dense network further and
    compress it again; `compress(data)` only compresses, with inputs for the compressor if
    wanted. Callbacks that clip or log gradients see those of data and penalty together.
    Floating inputs are given the dtype of the network; others are passed on as they are. A
    Dataset's targets are class numbers 0, 1, ...

    >>> from sklearn.datasets import load_iris
    >>> X, y = load_iris(return_X_y=True)
    >>> classifier = SmoothClassifier(
    ...     regularizer="nuclear_norm", regularizer__weight=1e-3,
    ...     compressor="svd", compressor__rank=0.5, lr=1e-2, max_epochs=20, random_state=0,
    ... ).fit(X, y)
    >>> bool(classifier.score(X, y) > 0.9)
    True
    >>> classifier.compressor_.n_parameters_out_ < classifier.compressor_.n_parameters_in_
    True

    Raises, before training: UnknownNameError, PluginTypeError for a regularizer or a
    compressor that is none; ValueError for settings that these do not have or accept, and
    for keywords that skorch does not know; NoLayerError for a network without a layer for
    the penalty or the compressor.

    References: Runkel et al. 2025, arXiv 2505.24469.
    """

    @_with_parameters_of(SklearnNet, NeuralNetClassifier, NeuralNet)
    def __init__(
        self,
        module: Any = None,
        regularizer: Any = "nuclear_norm",
        compressor: Any = None,
        *,
        criterion: Any = nn.CrossEntropyLoss,
        **parameters: Any,
    ):
        super().__init__(module, regularizer, compressor, criterion=criterion, **parameters)

    @property
    def classes_(self) -> np.ndarray:
        """Labels in the order of the outputs; while training, their numbers."""
        # skorch's scoring callbacks compare predictions with what the batches hold.
        labels = super().classes_
        return np.arange(len(labels)) if self.training_ else labels

    def _targets(self, y: Any, classes: Any) -> np.ndarray:
        y = column_or_1d(y)
        check_classification_targets(y)
        if not hasattr(self, "classes_inferred_"):
            self.classes_inferred_ = np.unique(y if classes is None else classes)
        labels = getattr(self, "classes_", None)
        if labels is None:
            return y
        order = np.argsort(labels)
        found = np.searchsorted(labels, y, sorter=order)
        numbers = order[np.minimum(found, len(labels) - 1)]
        unknown = np.unique(y[labels[numbers] != y])
        if len(unknown):
            raise ValueError(
                f"y has labels {unknown.tolist()}, which are not among the classes "
                f"{labels.tolist()}: name all in the first partial_fit(classes=...), or call fit"
            )
        return numbers

    def _n_outputs(self, targets: np.ndarray) -> int:
        labels = getattr(self, "classes_", None)
        return int(targets.max()) + 1 if labels is None else len(labels)

    def on_batch_end(self, net: Any, y_pred: Any = None, **kwargs: Any) -> None:
        super().on_batch_end(net, y_pred=y_pred, **kwargs)
        if self.classes is None and not hasattr(self, "classes_inferred_"):
            # A Dataset's targets are class numbers: as many as there are outputs.
            logits = y_pred[0] if isinstance(y_pred, tuple) else y_pred
            self.classes_inferred_ = np.arange(logits.shape[1])

    def predict(self, X: Any) -> np.ndarray:
        """Give the most likely label of each input, of shape (n,)."""
        numbers = super().predict(X)
        labels = getattr(self, "classes_", None)
        return numbers if labels is None else labels[numbers]


class SmoothRegressor(SmoothNet, NeuralNetRegressor):
    """Regressor that trains a network with smooth weights, and compresses it in the end.

    Parameters, learnt attributes and errors are those of `SmoothClassifier`, except that
    `criterion` is the mean squared error and that there are no classes. Targets are of
    shape (n,) or (n, k), and predictions have the shape and dtype of the targets; of a
    Dataset's targets, those of the network's outputs. The network may give (n, 1) for (n,).

    >>> import numpy as np
    >>> X = np.linspace(-1, 1, 100)[:, None]
    >>> regressor = SmoothRegressor(lr=1e-2, random_state=0).fit(X, X[:, 0] ** 2)
    >>> bool(regressor.score(X, X[:, 0] ** 2) > 0.9)
    True
    """

    _target_checks: ClassVar[dict[str, Any]] = {"multi_output": True, "y_numeric": True}

    @_with_parameters_of(SklearnNet, NeuralNet)
    def __init__(
        self,
        module: Any = None,
        regularizer: Any = "nuclear_norm",
        compressor: Any = None,
        *,
        criterion: Any = nn.MSELoss,
        **parameters: Any,
    ):
        super().__init__(module, regularizer, compressor, criterion=criterion, **parameters)

    def __sklearn_tags__(self) -> Tags:
        tags = super().__sklearn_tags__()
        tags.target_tags.multi_output = True
        return tags

    def _targets(self, y: Any, classes: Any) -> np.ndarray:
        y = np.asarray(y)
        self.target_ndim_, self.target_dtype_ = y.ndim, np.result_type(y.dtype, np.float32)
        return y

    def _n_outputs(self, targets: np.ndarray) -> int:
        return 1 if targets.ndim == 1 else targets.shape[1]

    def get_loss(self, y_pred: Tensor, y_true: Any, X: Any = None, training: bool = False) -> Any:
        y_true = to_tensor(y_true, device=self.device).to(y_pred.dtype)
        if y_true.numel() == y_pred.numel():
            # Between (n,) and (n, 1) a loss would compare every output with every target.
            y_true = y_true.reshape(y_pred.shape)
        return super().get_loss(y_pred, y_true, X=X, training=training)

    def predict(self, X: Any) -> np.ndarray:
        """Give predictions of the shape and dtype of the y that was fitted."""
        y = super().predict_proba(X)
        if not hasattr(self, "target_ndim_"):
            return y
        one_output = y.size == len(y)
        y = y.reshape((-1, 1)[: self.target_ndim_]) if one_output else y
        return y.astype(self.target_dtype_, copy=False)

    @property
    def predict_proba(self) -> Any:
        raise AttributeError("a regressor has no predict_proba")
