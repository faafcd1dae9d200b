"""examples/benchmarks/cifar10.py on a handful of made-up images, in all layouts that it reads."""

from __future__ import annotations

import json
import lzma
import pickle
import sys
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file

FOLDER = Path(__file__).parents[1] / "examples" / "benchmarks"
N_TRAIN, N_TEST = 150, 20
rng = np.random.default_rng(0)
PIXELS = rng.integers(0, 256, (N_TRAIN + N_TEST, 3, 32, 32), dtype=np.uint8)
LABELS = np.arange(N_TRAIN + N_TEST) % 10


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    import cifar10

    yield cifar10
    for name in [n for n, m in sys.modules.items() if _folder(m) == FOLDER]:
        del sys.modules[name]


def _folder(module):
    return Path(getattr(module, "__file__", None) or "/").parent


def write_official(root):
    root = root / "cifar-10-batches-py"
    root.mkdir(parents=True)
    names = [*(f"data_batch_{i}" for i in range(1, 6)), "test_batch"]
    ends = np.linspace(0, N_TRAIN, 6).astype(int).tolist()
    cuts = [*pairwise(ends), (N_TRAIN, N_TRAIN + N_TEST)]
    for name, (a, b) in zip(names, cuts, strict=True):
        batch = {b"data": PIXELS[a:b].reshape(b - a, -1), b"labels": LABELS[a:b].tolist()}
        (root / name).write_bytes(pickle.dumps(batch))


def write_folders(root):
    for i, (pixels, label) in enumerate(zip(PIXELS, LABELS, strict=True)):
        part = "train" if i < N_TRAIN else "test"
        folder = root / part / f"class{label}"
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(pixels.transpose(1, 2, 0)).save(folder / f"{i:04}.png")


def write_pack(root):
    root.mkdir()
    np.savez(root / "labels.npz", train=LABELS[:N_TRAIN], test=LABELS[N_TRAIN:])
    ends = np.linspace(0, N_TRAIN, 6).astype(int).tolist()
    parts = {f"train{i + 1}": PIXELS[ends[i] : ends[i + 1]] for i in range(5)}
    parts["test"] = PIXELS[N_TRAIN:]
    for name, pixels in parts.items():
        red, green, blue = pixels.transpose(1, 0, 2, 3)
        planes = np.stack([green, red - green, blue - green])
        coded = np.diff(planes, axis=-2, prepend=np.uint8(0))
        coded = np.diff(coded, axis=-1, prepend=np.uint8(0))
        (root / f"{name}.rgb2d.xz").write_bytes(lzma.compress(coded.tobytes()))


@pytest.mark.parametrize("write", [write_official, write_folders, write_pack])
def test_all_layouts_hold_the_same_images(benchmark, write, tmp_path):
    write(tmp_path / "data")
    train, test = benchmark.load(tmp_path / "data")
    for images, pixels, labels in (
        (train, PIXELS[:N_TRAIN], LABELS[:N_TRAIN]),
        (test, PIXELS[N_TRAIN:], LABELS[N_TRAIN:]),
    ):
        # Folders are read class by class.
        order = np.argsort(labels, kind="stable")
        found = torch.argsort(images.labels, stable=True)
        assert np.array_equal(images.labels[found].numpy(), labels[order])
        assert np.array_equal(images.pixels[found].numpy(), pixels[order])


def test_no_data_says_what_is_expected(benchmark, tmp_path):
    with pytest.raises(FileNotFoundError, match=r"expected data_batch_1 \.\.\. test_batch"):
        benchmark.load(tmp_path)


def test_crops_and_flips_are_of_the_image_with_a_black_margin(benchmark):
    pixels = torch.from_numpy(PIXELS[:64])
    padded = torch.nn.functional.pad(pixels, (4, 4, 4, 4))
    found = benchmark.augment(pixels, torch.Generator().manual_seed(0))
    flips = 0
    for image, source in zip(found, padded, strict=True):
        windows = source.unfold(1, 32, 1).unfold(2, 32, 1).permute(1, 2, 0, 3, 4).flatten(0, 1)
        plain = bool((windows == image).flatten(1).all(1).any())
        mirrored = bool((windows == image.flip(2)).flatten(1).all(1).any())
        assert plain or mirrored
        flips += mirrored
    assert 16 < flips < 48


def run(benchmark, root, *more):
    return benchmark.main([
        "--data", str(root / "data"), "--output", str(root / "runs"), "--validation", "20",
        "--batch-size", "32", "--threads", "1", "--precision", "float32", *more,
    ])  # fmt: skip


def test_an_interrupted_run_goes_on_as_if_nothing_had_happened(
    benchmark, tmp_path, monkeypatch, capsys
):
    write_official(tmp_path / "data")
    penalty = ("--regularizer", "nuclear_norm", "--weight", "1e-3", "--scheme", "spatial")
    whole = run(benchmark, tmp_path, *penalty, "--epochs", "2", "--name", "whole")

    save, saved = benchmark.Run.save, []

    def save_once(self):
        save(self)
        if not saved:
            saved.append(True)
            raise KeyboardInterrupt

    monkeypatch.setattr(benchmark.Run, "save", save_once)
    with pytest.raises(KeyboardInterrupt):
        run(benchmark, tmp_path, *penalty, "--epochs", "2", "--name", "parts")
    parts = run(benchmark, tmp_path, *penalty, "--epochs", "2", "--name", "parts")
    assert parts["results"] == whole["results"]
    folders = [tmp_path / "runs" / name for name in ("whole", "parts")]
    first, second = (load_file(folder / "network.safetensors") for folder in folders)
    assert all(torch.equal(first[name], second[name]) for name in first)

    found = json.loads((folders[0] / "results.json").read_text())
    assert [row["rank"] for row in found["results"]] == [1.0, 0.5, 0.3, 0.2, 0.1]
    assert all(row["parameters"] <= row["rank"] * 269722 for row in found["results"])
    benchmark.main(["--table", "--output", str(tmp_path / "runs")])
    assert "whole" in capsys.readouterr().out.splitlines()[-1]


def test_training_goes_on_from_given_weights(benchmark, tmp_path):
    write_official(tmp_path / "data")
    first = run(benchmark, tmp_path, "--epochs", "2", "--name", "first")
    weights = tmp_path / "runs" / "first" / "network.safetensors"
    again = run(benchmark, tmp_path, "--epochs", "1", "--warmup", "0.5", "--init", str(weights))
    losses = [row["loss"] for row in (*first["history"], *again["history"])]
    assert losses[2] < losses[0]
    assert (tmp_path / "runs" / "resnet20-tuned-none-seed0" / "network.safetensors").exists()
    with pytest.raises(ValueError, match="is of another network"):
        run(benchmark, tmp_path, "--model", "resnet18", "--init", str(weights))
