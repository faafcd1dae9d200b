"""The examples in docstrings run, and everything public has a docstring."""

from __future__ import annotations

import doctest
import importlib
import inspect
import pkgutil

import pytest
import torch

import skcompress

MODULES = [m.name for m in pkgutil.walk_packages(skcompress.__path__, "skcompress.") if not m.ispkg]


@pytest.mark.parametrize("name", MODULES)
def test_examples(name):
    module = importlib.import_module(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        results = doctest.testmod(module, extraglobs={"torch": torch})
    assert results.failed == 0


@pytest.mark.parametrize("name", MODULES)
def test_public_things_say_what_they_are(name):
    module = importlib.import_module(name)
    assert module.__doc__
    for label, thing in vars(module).items():
        own = getattr(thing, "__module__", None) == name
        if own and not label.startswith("_") and (inspect.isclass(thing) or callable(thing)):
            assert thing.__doc__, f"{name}.{label} has no docstring"


@pytest.mark.parametrize("name", skcompress.__all__)
def test_public_names_resolve(name):
    assert getattr(skcompress, name) is not None
    assert name in dir(skcompress)
