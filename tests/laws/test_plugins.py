"""The conformance kit over everything registered."""

from __future__ import annotations

import pytest
import torch
from models import LAYERS, seeded

from skcompress import registry, testing
from skcompress.layers import kind_of

OUR_OWN = {
    "decompositions": ["svd", "spatial_svd", "tucker", "low_rank_sparse"],
    "allocations": ["global", "uniform", "energy", "auto", "erk", "rd", "sap", "relative"],
    "regularizers": [
        *("nuclear_norm", "first_difference", "second_difference", "nuclear_ratio"),
        *("schatten", "stable_rank", "log_det", "hoyer_spectrum", "orthogonality"),
        *("frobenius", "l1", "group_lasso"),
    ],
    "criteria": ["magnitude", "lamp", "random", "wanda", "obs", "taylor", "fisher", "lrp"],
    "objectives": ["score", "n_parameters", "flops", "bytes", "latency"],
    "compressors": ["low_rank", "svd", "tucker", "pruner", "magnitude_pruner"],
    "costs": ["parameters", "bytes", "flops"],
    "storages": ["plain", "pivot"],
    "layers": ["linear", "conv1d", "convolution", "embedding", "attention", "recurrent", "experts"],
}
CHECKS = {
    "decompositions": testing.check_decomposition,
    "allocations": testing.check_allocation,
    "regularizers": testing.check_regularizer,
    "criteria": testing.check_criterion,
    "objectives": testing.check_objective,
    "compressors": testing.check_compressor,
    "costs": testing.check_cost,
    "storages": testing.check_storage,
}
# Its factors are of bases that are better than those whose errors it knows for all ranks at once.
ASKED = {"tucker": {"bound": True}}


def ours(kind: str) -> list[str]:
    """Registered by this package; plugin packages run the kit in their own tests."""
    return [n for n in registry.names(kind) if _home(kind, n).startswith("skcompress.")]


def _home(kind: str, name: str) -> str:
    return registry.resolve(kind, name).__module__


@pytest.mark.parametrize(("kind", "name"), [(k, n) for k in CHECKS for n in ours(k)])
def test_keeps_the_laws(kind, name):
    asked = ASKED.get(name, {}) if kind == "decompositions" else {}
    CHECKS[kind](registry.make(kind, name), **asked)


def test_everything_ours_is_registered():
    for kind, names in OUR_OWN.items():
        assert set(names) <= set(registry.names(kind))


@pytest.mark.parametrize("layer", list(LAYERS))
def test_layer_kinds_keep_the_laws(layer):
    build, arguments = LAYERS[layer]
    module = seeded(build)
    testing.check_layer_kind(
        kind_of(module), lambda: seeded(build).double().eval(), *arguments(torch.float64)
    )


def test_a_layer_of_every_kind_is_checked():
    kinds = {type(kind_of(seeded(build))) for build, _ in LAYERS.values()}
    assert {registry.resolve("layers", name) for name in ours("layers")} <= kinds
