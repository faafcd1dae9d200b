"""Public names that packages of their own provide."""

from __future__ import annotations

import pytest

import skcompress
from skcompress import errors, registry
from skcompress.protocols import Compressor


class Pretend(Compressor):
    def fit(self, model, data=None):
        return self

    def transform(self, model):
        return model


def test_missing_package_is_named_with_how_to_install_it(monkeypatch):
    monkeypatch.setattr(registry, "names", lambda kind: ["svd"])
    with pytest.raises(errors.MissingPluginError, match="pip install skcompress-torch-pruning"):
        skcompress.ChannelPruner  # noqa: B018
    with pytest.raises(ImportError, match=r"pip install -e plugins/skcompress-torch-pruning"):
        from skcompress import ChannelPruner  # noqa: F401


def test_name_is_what_is_registered(monkeypatch):
    monkeypatch.setattr(registry, "names", lambda kind: ["channel"])
    monkeypatch.setattr(registry, "resolve", lambda kind, name: (kind, name, Pretend)[2])
    assert skcompress.ChannelPruner is Pretend


def test_importing_everything_does_without():
    assert "ChannelPruner" not in skcompress.__all__
