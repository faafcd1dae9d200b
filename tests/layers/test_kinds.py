"""Kinds of layers from other packages, which the core has never heard of."""

from __future__ import annotations

import importlib
import sys
import warnings

import pytest
import torch
from models import random, seeded
from torch import nn

from skcompress import Pruner, SVDCompressor, testing
from skcompress.errors import LayerKindConflictError, PluginConflictError
from skcompress.layers import Factorized, kind_of
from skcompress.layers.linear import LinearKind

SCALED = '''
import copy
import torch
from torch import nn
from torch.nn import functional as F
from skcompress.protocols import Factorized, Factors, LayerKind, Slot, rows


class Scaled(nn.Module):
    """y = scale * (W x)."""

    def __init__(self, inputs, outputs):
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(outputs, inputs))
        self.scale = nn.Parameter(torch.rand(outputs) + 1)

    def forward(self, x):
        return self.scale * F.linear(x, self.matrix)


class FactorizedScaled(nn.Module, Factorized):
    kind = "scaled"

    def __init__(self, scale, factors):
        super().__init__()
        self.right, self.left = factors.tensors
        self.scale = scale

    def forward(self, x):
        return self.scale * F.linear(F.linear(x, self.right), self.left)

    def factors(self):
        return {"": Factors((self.right, self.left), (1, 1))}

    def to_dense(self, memo):
        dense = Scaled(*self.right.shape[::-1])
        dense.matrix = nn.Parameter((self.left @ self.right).detach())
        dense.scale = copy.deepcopy(self.scale, memo)
        return dense


class ScaledKind(LayerKind):
    types = (Scaled,)

    def slots(self, module):
        return [Slot("", 1, lambda: module.matrix[None], (module.matrix,))]

    def build(self, module, factors, memo):
        return FactorizedScaled(copy.deepcopy(module.scale, memo), factors[""])

    def inputs(self, module, wanted, call):
        yield "", rows(call["x"])

    def outputs(self, module, output):
        return {"": rows(output / module.scale)}
'''
# Two rivals for layers that nn.Linear's own kind takes as well.
LINEAR = """
from torch import nn
from skcompress.layers.linear import LinearKind


class Narrow(nn.Linear):
    pass


class NarrowKind(LinearKind):
    types = (Narrow,)
"""


@pytest.fixture
def install(tmp_path, monkeypatch):
    """Give a function that installs a package with kinds of layers, and imports it."""
    monkeypatch.syspath_prepend(str(tmp_path))
    made = []

    def _install(module: str, source: str, kinds: dict[str, str]):
        (tmp_path / f"{module}.py").write_text(source)
        info = tmp_path / f"{module}-1.0.dist-info"
        info.mkdir()
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {module}\nVersion: 1.0\n")
        lines = [f"{name} = {module}:{cls}" for name, cls in kinds.items()]
        (info / "entry_points.txt").write_text("\n".join(["[skcompress.layers]", *lines, ""]))
        made.append(module)
        return importlib.import_module(module)

    yield _install
    for module in made:
        sys.modules.pop(module, None)


@pytest.fixture
def scaled(install):
    return install("scaled_package", SCALED, {"scaled": "ScaledKind"})


def test_keeps_the_laws(scaled):
    testing.check_layer_kind(
        scaled.ScaledKind, lambda: seeded(lambda: scaled.Scaled(9, 8)).double(), random(5, 9)
    )


@pytest.mark.parametrize("data", [None, random(200, 20, dtype=torch.float32)], ids=["no", "data"])
def test_is_compressed_like_any_other_layer(scaled, data):
    model = seeded(lambda: nn.Sequential(scaled.Scaled(20, 30), nn.ReLU(), scaled.Scaled(30, 10)))
    compressor = SVDCompressor(rank=0.7, allocation="uniform")
    small = compressor.fit_transform(model, data)
    assert set(compressor.ranks_) == {"0", "2"}
    assert all(isinstance(small[i], Factorized) for i in (0, 2))
    pruned = Pruner("magnitude" if data is None else "wanda", sparsity=0.5).fit_transform(
        model, data
    )
    assert int((pruned[0].matrix == 0).sum() + (pruned[2].matrix == 0).sum()) == 450


def test_without_its_package_the_layer_is_of_no_kind(scaled, monkeypatch):
    layer = scaled.Scaled(4, 4)
    assert kind_of(layer) is not None
    monkeypatch.setattr(sys, "path", sys.path[1:])
    assert kind_of(layer) is None


def test_the_kind_of_the_most_derived_class_takes_a_layer(install):
    module = install("narrow_package", LINEAR, {"narrow": "NarrowKind"})
    assert type(kind_of(module.Narrow(3, 4))) is module.NarrowKind
    assert type(kind_of(nn.Linear(3, 4))) is LinearKind


def test_two_kinds_of_one_class_are_an_error_that_names_both(install):
    module = install(
        "rival_package", LINEAR.replace("(Narrow,)", "(nn.Linear,)"), {"rival": "NarrowKind"}
    )
    with pytest.raises(LayerKindConflictError, match="'linear' and 'rival' both take a Narrow"):
        kind_of(module.Narrow(3, 4))


def test_a_name_that_two_packages_give_is_an_error(install):
    install("thief_package", LINEAR, {"linear": "NarrowKind"})
    with pytest.raises(PluginConflictError, match="'skcompress' and 'thief_package'"):
        kind_of(nn.Linear(3, 4))


def test_a_kind_that_cannot_be_loaded_is_warned_of_once(install):
    install("broken_package", "", {"broken": "Missing"})
    with pytest.warns(UserWarning, match="'broken' of layers, provided by package 'br"):
        assert type(kind_of(nn.Linear(3, 4))) is LinearKind
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert kind_of(nn.ReLU()) is None
