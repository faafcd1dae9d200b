"""The first program that a newcomer runs, with few epochs."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

from skcompress import count_parameters

EXAMPLE = Path(__file__).parents[1] / "examples" / "quickstart.py"


@pytest.fixture(scope="module")
def quickstart():
    spec = importlib.util.spec_from_file_location("quickstart_example", EXAMPLE)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    yield module
    del sys.modules[spec.name]


def test_the_split_uses_every_image_once_and_keeps_proportions(quickstart):
    digits = quickstart.load(seed=0)
    sizes = [len(images.labels) for images in digits]
    assert sizes == [1077, 270, 450]
    images = torch.cat([part.pixels.flatten(1) for part in digits])
    assert len(np.unique(images.numpy(), axis=0)) == 1797
    for part in digits:
        shares = torch.bincount(part.labels, minlength=10) / len(part.labels)
        assert shares.min() > 0.09
        assert shares.max() < 0.11


def test_training_repeats_and_leaves_the_global_random_state(quickstart):
    train = quickstart.load(seed=0).train
    before = torch.get_rng_state()
    first, second, other = (quickstart.train(train, 1, seed, 0.1) for seed in (0, 0, 1))
    assert torch.equal(before, torch.get_rng_state())
    assert torch.equal(first[0].weight, second[0].weight)
    assert not torch.equal(first[0].weight, other[0].weight)


def test_few_epochs_suffice_to_read_digits_and_to_halve_the_network(quickstart):
    digits = quickstart.load(seed=0)
    network = quickstart.train(digits.train, 4, 0)
    assert f"{count_parameters(network):,} parameters" in quickstart.build_network.__doc__
    assert quickstart.accuracy(network, digits.test) > 0.95
    small = quickstart.compress(network)
    assert list(small) == list(quickstart.RANKS)
    for rank, result in small.items():
        assert count_parameters(result) <= rank * count_parameters(network)
    assert quickstart.accuracy(small[0.5], digits.test) > 0.9


def test_a_smoother_network_has_a_smaller_nuclear_norm(quickstart):
    train = quickstart.load(seed=0).train
    plain, smooth = (quickstart.train(train, 3, 0, strength) for strength in (0.0, 0.1))
    penalty = quickstart.NuclearNorm(1.0)
    assert penalty(smooth) < 0.7 * penalty(plain)


def test_the_whole_program(quickstart, monkeypatch, capsys, tmp_path):
    monkeypatch.setattr(quickstart, "STRENGTHS", (0.1,))
    monkeypatch.setattr(quickstart, "RANKS", (0.5, 0.3))
    monkeypatch.setattr(quickstart, "LATENCY_ROUNDS", 1)
    rows = quickstart.main(["--epochs", "1", "--output", str(tmp_path / "new" / "folder")])
    printed = capsys.readouterr().out
    assert [(row["training"], row["rank"]) for row in rows] == [
        (training, rank) for training in ("plain", "smooth") for rank in (None, 0.5, 0.3)
    ]
    assert all(0 < row["seconds"] < 10 for row in rows)
    assert all(f"{row['parameters']:,}" in printed for row in rows)
    picture = tmp_path / "new" / "folder" / "accuracy.png"
    assert picture.read_bytes().startswith(b"\x89PNG")
