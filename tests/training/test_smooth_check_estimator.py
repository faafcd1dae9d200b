"""Everything that scikit-learn asks of a classifier and a regressor, without exceptions."""

from __future__ import annotations

from functools import partial

from sklearn.utils import estimator_checks
from sklearn.utils.estimator_checks import parametrize_with_checks
from smooth_cases import curve

from skcompress.training import SmoothClassifier, SmoothRegressor

QUICK = {"max_epochs": 5, "lr": 2e-2}


@parametrize_with_checks(
    [
        SmoothClassifier(**QUICK),
        SmoothRegressor(**QUICK),
    ]
)
def test_check(estimator, check):
    check(estimator)


def test_the_defaults_learn():
    estimator_checks.check_classifiers_classes("SmoothClassifier", SmoothClassifier())
    inputs, targets = curve()
    regressor = SmoothRegressor(random_state=0).fit(inputs, targets)
    assert regressor.score(inputs, targets) > 0.8


def test_a_compressed_classifier_is_a_classifier_too():
    compressed = SmoothClassifier(compressor="svd", compressor__rank=0.7, **QUICK)
    for check in (
        estimator_checks.check_classifiers_train,
        estimator_checks.check_fit_idempotent,
        estimator_checks.check_dict_unchanged,
        estimator_checks.check_estimators_overwrite_params,
        partial(estimator_checks.check_estimators_pickle, readonly_memmap=True),
    ):
        check("SmoothClassifier", compressed)
