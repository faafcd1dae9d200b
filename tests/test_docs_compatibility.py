"""docs/compatibility.md is true; `compat/test_matrix.py` has its table."""

from __future__ import annotations

from pathlib import Path

import torch
from documents import sections

PAGE = Path(__file__).parents[1] / "docs" / "compatibility.md"


def test_zeros_are_held_as_the_page_says():
    held, masked = sections(PAGE.read_text())["Zeros while training goes on"]
    namespace: dict[str, object] = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for _, source in (held, masked):
            made, _, trained = source.partition("optimizer = ")
            exec(made, namespace)
            before = [layer.weight.detach().clone() for layer in _layers(namespace)]
            exec(f"optimizer = {trained}", namespace)
            for layer, old in zip(_layers(namespace), before, strict=True):
                assert 0 < (old == 0).sum() < old.numel()
                assert torch.equal(layer.weight == 0, old == 0)
                assert not torch.equal(layer.weight, old)
        optimizer = torch.optim.SGD(namespace["model"].parameters(), lr=0.1)
        namespace["model"](torch.randn(8, 20)).square().mean().backward()
        optimizer.step()  # held by nothing
        assert not torch.equal(_layers(namespace)[0].weight == 0, before[0] == 0)


def _layers(namespace):
    return [namespace["model"][0], namespace["model"][2]]
