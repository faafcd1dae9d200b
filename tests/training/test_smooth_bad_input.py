"""Every mistake is an error that names it, before a single step of training."""

from __future__ import annotations

import numpy as np
import pytest
from sklearn.exceptions import NotFittedError
from skorch.callbacks import Callback
from smooth_cases import curve, digits
from torch import nn

from skcompress import NuclearNorm, SVDCompressor
from skcompress.errors import (
    ModelCopyError,
    NoLayerError,
    PluginTypeError,
    RegularizerValueError,
    UnknownNameError,
)
from skcompress.training import SmoothClassifier, SmoothRegressor

X, Y = digits(60)


class Forbidden(Callback):
    def on_batch_begin(self, net, **kwargs):
        raise AssertionError("training has begun")


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"regularizer__weight": -1.0}, RegularizerValueError, "weight of NuclearNorm must be"),
        ({"regularizer__weight": float("nan")}, RegularizerValueError, "got nan"),
        ({"regularizer": NuclearNorm(-1.0)}, RegularizerValueError, "got -1.0"),
        ({"regularizer": "svd"}, UnknownNameError, "no regularizers is named 'svd'"),
        ({"regularizer": "nuclear"}, UnknownNameError, "did you mean 'nuclear_norm'"),
        ({"regularizer": SVDCompressor()}, PluginTypeError, "regularizers must be names or"),
        ({"regularizer": NuclearNorm}, PluginTypeError, "pass an instance of it, not the class"),
        ({"regularizer__wieght": 1.0}, ValueError, "Invalid parameter 'wieght'.*NuclearNorm"),
        ({"regularizer_weight": 1.0}, ValueError, "did you mean regularizer__weight?"),
        ({"regularizer__layers": "conv*"}, ValueError, r"layers='conv\*' matches no layer"),
        ({"compressor": "nuclear_norm"}, UnknownNameError, "no compressors is named"),
        ({"compressor": NuclearNorm()}, PluginTypeError, "compressors must be names or"),
        ({"compressor": SVDCompressor}, PluginTypeError, "pass an instance of it, not the class"),
        ({"compressor": "svd", "compressor__rnak": 1}, ValueError, "Invalid parameter 'rnak'"),
        ({"compressor": "svd", "compressor__rank": 1.3}, ValueError, "'rank' parameter of SVD"),
        ({"max_epoch": 3}, ValueError, r"unexpected argument\(s\) max_epoch"),
        ({"module": nn.Identity(), "lr": 1.0}, ValueError, "empty parameter list"),
        ({"module": nn.LayerNorm(64)}, NoLayerError, "NuclearNorm found no layer"),
        (
            {"module": nn.LayerNorm(64), "regularizer": None, "compressor": "svd"},
            NoLayerError,
            "SVDCompressor found no layer",
        ),
    ],
)
def test_bad_settings(settings, error, message):
    net = SmoothClassifier(**{"callbacks": [Forbidden()]} | settings)
    with pytest.raises(error, match=message):
        net.fit(X, Y)


@pytest.mark.parametrize("value", [-1.0, float("nan")])
def test_a_bad_weight_amid_training(value):
    class Spoil(Callback):
        def on_epoch_end(self, net, **kwargs):
            net.set_params(regularizer__weight=value)

    with pytest.raises(RegularizerValueError):
        SmoothClassifier(callbacks=[Spoil()]).fit(X, Y)


@pytest.mark.parametrize("parameter", ["regularizer__weight", "compressor__rank"])
def test_a_setting_of_nothing_is_a_warning(parameter):
    net = SmoothClassifier(regularizer=None, max_epochs=1, **{parameter: 0.5})
    with pytest.warns(UserWarning, match=f"{parameter} has no effect, since"):
        net.fit(X, Y)


def test_a_module_that_cannot_be_copied():
    class Single(nn.Linear):
        def __deepcopy__(self, memo):
            raise TypeError("there is only one")

    with pytest.raises(ModelCopyError, match="there is only one"):
        SmoothClassifier(Single(64, 10)).fit(X, Y)


@pytest.mark.parametrize("estimator", [SmoothClassifier, SmoothRegressor])
def test_nothing_to_size_a_network_by(estimator):
    with pytest.raises(ValueError, match="has no module, and no array or Dataset to size one by"):
        estimator().initialize()
    with pytest.raises(ValueError, match=f"{estimator.__name__} has no module"):
        estimator().fit(X, Y % 2).fit({"inputs": X}, Y % 2)


def test_targets_that_a_classifier_cannot_have():
    inputs, targets = curve()
    with pytest.raises(ValueError, match="continuous"):
        SmoothClassifier().fit(inputs, targets)
    with pytest.raises(ValueError, match="1d array"):
        SmoothClassifier().fit(X, np.stack([Y, Y], 1))
    with pytest.raises(ValueError, match="requires y to be passed"):
        SmoothClassifier().fit(X)
    with pytest.raises(ValueError, match="inconsistent numbers of samples"):
        SmoothClassifier().fit(X, Y[:-1])


def test_before_fit():
    for method in ("predict", "predict_proba", "score"):
        with pytest.raises(NotFittedError):
            getattr(SmoothClassifier(), method)(*((X, Y) if method == "score" else (X,)))
    assert not hasattr(SmoothRegressor(), "predict_proba")


def test_data_of_another_width_after_training_on_some():
    net = SmoothClassifier(max_epochs=1).fit(X, Y)
    with pytest.raises(ValueError, match="expecting 64 features"):
        net.partial_fit(X[:, :3], Y)
    net.set_params(warm_start=True)
    with pytest.raises(ValueError, match="expecting 64 features"):
        net.fit(X[:, :3], Y)
