"""The examples in docstrings run, and everything public has a docstring."""

from __future__ import annotations

import doctest
import importlib
import pkgutil
from pathlib import Path

import pytest
import torch

import skcompress

PACKAGE = Path(skcompress.__file__).parent
MODULES = [m.name for m in pkgutil.walk_packages(skcompress.__path__, "skcompress.") if not m.ispkg]


def source(name: str) -> str:
    return PACKAGE.joinpath(*name.split(".")[1:]).with_suffix(".py").read_text()


@pytest.mark.parametrize("name", [name for name in MODULES if ">>> " in source(name)])
def test_examples(name):
    module = importlib.import_module(name)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        results = doctest.testmod(module, extraglobs={"torch": torch})
    assert results.failed == 0


def test_public_things_say_what_they_are():
    silent = []
    for name in MODULES:
        module = importlib.import_module(name)
        own = {
            f"{name}.{label}": thing
            for label, thing in vars(module).items()
            if getattr(thing, "__module__", None) == name and not label.startswith("_")
        }
        things = {name: module, **{k: v for k, v in own.items() if callable(v)}}
        silent += [label for label, thing in things.items() if not thing.__doc__]
    assert len(MODULES) > 100
    assert not silent


def test_public_names_resolve():
    assert skcompress.__all__
    for name in skcompress.__all__:
        assert getattr(skcompress, name) is not None
        assert name in dir(skcompress)
