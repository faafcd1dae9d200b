"""examples/benchmarks/tuning.py on a handful of made-up images and untrained networks."""

from __future__ import annotations

import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

FOLDER = Path(__file__).parents[1] / "examples" / "benchmarks"
rng = np.random.default_rng(0)
PIXELS = rng.integers(0, 256, (130, 3, 32, 32), dtype=np.uint8)  # the last 30 are test images


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    import tuning

    yield tuning
    for name in [n for n, m in sys.modules.items() if _folder(m) == FOLDER]:
        del sys.modules[name]


def _folder(module):
    return Path(getattr(module, "__file__", None) or "/").parent


@pytest.fixture
def arguments(benchmark, tmp_path):
    """A folder with data, and weights of a ResNet-8, which has no name of its own."""
    from cifar10_networks import build

    for name, part in {f"data_batch_{i + 1}": slice(20 * i, 20 * i + 20) for i in range(5)}.items():
        _write(tmp_path / name, PIXELS[part])
    _write(tmp_path / "test_batch", PIXELS[100:])
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        weights = build("resnet8").state_dict()
    np.savez(tmp_path / "mine.npz", **{name: tensor.numpy() for name, tensor in weights.items()})
    return [
        *("--data", str(tmp_path), "--network", str(tmp_path / "mine.npz"), "--keep", "0.5"),
        *("--images", "8", "--validation", "20", "--test-images", "10", "--threads", "1"),
        *("--device", "cpu", "--output", str(tmp_path / "runs")),
    ]


def _write(path, pixels):
    batch = {b"data": pixels.reshape(-1, 3072), b"labels": list(range(10)) * (len(pixels) // 10)}
    path.write_bytes(pickle.dumps(batch))


def rows(printed):
    """Cells of the last table, by what was searched."""
    lines = printed.split("\nmine\n")[-1].strip().splitlines()[2:]
    found = {}
    for line in lines:
        for name in ("dense", "closed form", "search: ranks", "search: settings"):
            if name in line:
                found[name] = line.split(name)[1].split()
    return found


def test_searches_beside_the_closed_form_and_again(benchmark, arguments, capsys):
    benchmark.main([*arguments, "--spaces", "ranks", "settings", "--trials", "2"])
    found = rows(capsys.readouterr().out)
    assert set(found) == {"dense", "closed form", "search: ranks", "search: settings"}
    dense = int(found["dense"][0].replace(",", ""))
    for name in ("closed form", "search: settings"):
        assert int(found[name][2].replace(",", "")) <= 0.5 * dense
    # Two trials need not be enough for ranks that are small enough together.
    ranks = " ".join(found["search: ranks"])
    assert "none was small enough" in ranks or int(ranks.split()[2].replace(",", "")) <= 0.5 * dense
    assert float(found["search: settings"][3]) >= 0
    # What is there is not searched again, and more trials are added to it.
    benchmark.main([*arguments, "--spaces", "settings", "--trials", "2"])
    assert rows(capsys.readouterr().out)["search: settings"][:5] == found["search: settings"][:5]
    benchmark.main([*arguments, "--spaces", "settings", "--trials", "3"])
    assert rows(capsys.readouterr().out)["search: settings"][0] == "3"


def test_images_are_for_one_purpose_each(benchmark, arguments):
    from cifar10_data import normalise
    from posttraining_tasks import Cifar10

    task = Cifar10(Path(arguments[1]))
    parts = benchmark.split(task, 30, 50)
    training = normalise(torch.from_numpy(PIXELS[:100])).flatten(1)

    def places(images):
        found = torch.cdist(
            images.flatten(1), training, compute_mode="donot_use_mm_for_euclid_dist"
        )
        assert (found.min(1).values == 0).all()
        return set(found.argmin(1).tolist())

    calibration, validation = places(parts.calibration), places(normalise(parts.validation.pixels))
    assert (len(calibration), len(validation)) == (30, 50)
    assert not calibration & validation


def test_what_a_trial_costs(benchmark, capsys, monkeypatch):
    import tuning_cost
    from networks import NETWORKS, resnet

    monkeypatch.setitem(NETWORKS, "resnet18", lambda: resnet((1, 1), bottleneck=False, classes=10))
    tuning_cost.print_cost(["resnet8"], "cpu", 8, n_trials=3, n_fits=1)
    tuning_cost.print_many("cpu", n_trials=3)
    printed = capsys.readouterr().out
    assert "resnet8, 8 images: fit_transform" in printed
    assert "3 trials in" in printed


def test_missing_data_is_named(benchmark, capsys):
    with pytest.raises(SystemExit):
        benchmark.main(["--network", "mine.npz"])
    assert "--data is needed" in capsys.readouterr().err
