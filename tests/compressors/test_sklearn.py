"""scikit-learn's own checks that do not need X to be an array."""

from __future__ import annotations

import pytest
from sklearn.utils import estimator_checks

from skcompress import LowRankCompressor, SVDCompressor, TuckerCompressor

CHECKS = [
    "check_estimator_cloneable",
    "check_estimator_repr",
    "check_no_attributes_set_in_init",
    "check_parameters_default_constructible",
    "check_get_params_invariance",
    "check_set_params",
    "check_valid_tag_types",
    "check_estimator_tags_renamed",
    "check_mixin_order",
    "check_param_validation",
    "check_estimators_unfitted",
]


@pytest.mark.parametrize("check", CHECKS)
@pytest.mark.parametrize("compressor", [SVDCompressor, TuckerCompressor, LowRankCompressor])
def test_check(compressor, check):
    getattr(estimator_checks, check)(compressor.__name__, compressor())


def test_html_diagram():
    assert "SVDCompressor" in SVDCompressor(rank=0.4)._repr_html_()


def test_repr_shows_what_differs_from_the_defaults():
    assert repr(SVDCompressor(rank=0.4)) == "SVDCompressor(rank=0.4)"
