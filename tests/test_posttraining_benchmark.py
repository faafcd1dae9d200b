"""examples/benchmarks/posttraining.py on a handful of made-up images and an untrained network."""

from __future__ import annotations

import json
import pickle
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

FOLDER = Path(__file__).parents[1] / "examples" / "benchmarks"
rng = np.random.default_rng(0)
PIXELS = rng.integers(0, 256, (130, 3, 32, 32), dtype=np.uint8)  # the last 30 are test images
METHODS = ("plain, uniform", "independent", "sequential", "everything")


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    import posttraining

    yield posttraining
    for name in [n for n, m in sys.modules.items() if _folder(m) == FOLDER]:
        del sys.modules[name]


def _folder(module):
    return Path(getattr(module, "__file__", None) or "/").parent


@pytest.fixture
def root(benchmark, tmp_path):
    """A folder with data/cifar10."""
    data = tmp_path / "data" / "cifar10"
    data.mkdir(parents=True)
    parts = {f"data_batch_{i + 1}": slice(20 * i, 20 * i + 20) for i in range(5)}
    for name, part in {**parts, "test_batch": slice(100, 130)}.items():
        pixels = PIXELS[part].reshape(-1, 3072)
        batch = {b"data": pixels, b"labels": list(range(10)) * (len(pixels) // 10)}
        (data / name).write_bytes(pickle.dumps(batch))
    return tmp_path


@pytest.fixture
def thin(benchmark, root, monkeypatch):
    """A network of a few thousand weights in place of the one that is named."""
    from posttraining_tasks import Cifar10, Subject

    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Conv2d(3, 16, 3, 4), nn.ReLU(), nn.Conv2d(16, 16, 3, 4), nn.Flatten(),
            nn.Linear(64, 10),
        ).eval()  # fmt: skip
    subject = Subject("thin", "resnet20", "w0", network, Cifar10(root / "data" / "cifar10", 10))
    given = {"subject": subject}
    monkeypatch.setattr("posttraining_program.open_subject", lambda *_: given["subject"])
    return given


def run(benchmark, root, *more):
    benchmark.main([
        "--data", str(root / "data"), "--network", "thin", "--images", "8", "--seeds", "0", "1",
        "--keep", "0.7", "0.5", "--methods", *METHODS, "--test-images", "10", "--threads", "1",
        "--device", "cpu", "--output", str(root / "runs"), *more,
    ])  # fmt: skip
    return [json.loads(line) for line in (root / "runs" / "results.jsonl").open()]


def test_resnets_are_told_by_their_weights(benchmark, root, capsys):
    from cifar10_networks import build

    with torch.random.fork_rng():
        torch.manual_seed(0)
        weights = build("resnet20").state_dict()
    np.savez(root / "mine.npz", **{name: tensor.numpy() for name, tensor in weights.items()})
    network, more = str(root / "mine.npz"), ("--keep", "0.5", "--methods", "plain, global")
    dense, small = run(benchmark, root, "--network", network, *more)
    assert (dense["kind"], dense["network"], dense["parameters_in"]) == ("resnet20", "mine", 269722)
    assert small["parameters_out"] <= 134861
    # The same name for other weights is another network.
    weights["linear.bias"] += 1
    np.savez(root / "mine.npz", **{name: tensor.numpy() for name, tensor in weights.items()})
    assert len(run(benchmark, root, "--network", network, *more)) == 4


def test_every_share_draw_and_method_is_one_result(benchmark, root, thin, capsys):
    rows = run(benchmark, root)
    same = benchmark.METHODS["sequential"] == benchmark.METHODS["everything"]
    # Once dense, once without data, and for each draw; alike settings are not fitted twice.
    assert len(rows) == 1 + 2 * (1 + 2 * (2 if same else 3))
    for row in rows[1:]:
        assert row["parameters_out"] <= row["keep"] * row["parameters_in"]
        assert 0 <= row["quality"] <= 100
        assert (row["seed"] is None) == (row["settings"].get("metric") == "weights")
    printed = capsys.readouterr().out
    assert f"thin: {rows[0]['parameters_in']:,} parameters" in printed
    assert all(f"| {method} " in printed for method in METHODS)
    assert "lost 25.2" in printed  # the published figure at half of the parameters


def test_methods_of_several_decompositions(benchmark, root, thin, capsys):
    method = "everything, with sparse terms"
    rows = run(benchmark, root, "--methods", method, "--seeds", "0", "--keep", "0.5")
    assert [row["settings"] for row in rows[1:]] == [benchmark.METHODS[method]]
    assert rows[1]["parameters_out"] <= rows[1]["parameters_in"] / 2
    assert f"| {method} " in capsys.readouterr().out


def test_what_is_there_is_not_computed_again(benchmark, root, thin, monkeypatch):
    rows = run(benchmark, root)
    fits = []
    fit = benchmark.SVDCompressor.fit

    def counted(self, *arguments):
        fits.append(self.rank)
        return fit(self, *arguments)

    monkeypatch.setattr(benchmark.SVDCompressor, "fit", counted)
    assert run(benchmark, root) == rows
    assert not fits

    path = root / "runs" / "results.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows[:-1]))
    last = run(benchmark, root)[-1]
    assert fits == [rows[-1]["keep"]]
    assert last["quality"] == rows[-1]["quality"]

    monkeypatch.setitem(benchmark.METHODS, "independent", {"reconstruction": "independent",
                                                           "scheme": "input"})  # fmt: skip
    assert len(run(benchmark, root)) == len(rows) + 4  # other settings are another method


def test_calibration_images_are_training_images_drawn_by_the_seed(benchmark, root):
    from cifar10_data import normalise
    from posttraining_tasks import Cifar10

    task = Cifar10(root / "data" / "cifar10")
    one, again, other = (task.calibration(30, np.random.default_rng(seed)) for seed in (0, 0, 1))
    assert torch.equal(one, again)
    assert not torch.equal(one, other)
    training = normalise(torch.from_numpy(PIXELS[:100])).flatten(1)
    found = torch.cdist(one.flatten(1), training, compute_mode="donot_use_mm_for_euclid_dist")
    assert (found.min(1).values == 0).all()
    assert len(found.argmin(1).unique()) == 30


def test_a_share_out_of_reach_is_noted(benchmark, root, thin, capsys):
    rows = run(benchmark, root, "--keep", "0.001", "--methods", "plain, uniform")
    assert rows[1]["quality"] is None
    assert "cannot be reached" in rows[1]["note"]
    assert "cannot be reached" in capsys.readouterr().out


def result(quality, settings=None, seed=None, **more):
    row = {
        "network": "n", "kind": "k", "weights": "w", "test": None, "unit": "u", "keep": 0.5,
        "better": "higher", "inputs": 0 if seed is None else 8, "positions": None,
        "parameters_in": 100,
    }  # fmt: skip
    times = {} if settings is None else {"first": True, "fit_s": 2.0, "transform_s": 0.5}
    return {**row, **times, "quality": quality, "settings": settings, "seed": seed, **more}


@pytest.mark.parametrize(("better", "lost"), [("higher", "10.00"), ("lower", "-10.00")])
def test_cells_are_means_over_seeds_and_what_is_lost(benchmark, better, lost):
    rows = [result(90.0, keep=1.0), result(79.0, {}, 0), result(81.0, {}, 1)]
    text = benchmark.tables([{**row, "better": better} for row in rows], {"ours": {}})
    *_, line = text.splitlines()
    cells = [cell.strip() for cell in line.strip("|").split("|")]
    assert cells == ["ours", f"80.00 ± 1.41 (lost {lost})", "2.5", ""]


def test_missing_data_and_networks_are_named(benchmark, root, capsys):
    for data in ([], ["--data", str(root / "nowhere")]):
        with pytest.raises(SystemExit):
            benchmark.main(["--network", "thin.npz", *data])
        assert "--data is needed" in capsys.readouterr().err
    with pytest.raises(FileNotFoundError, match=r"no network 'conv_lstm'.*sequences\.py"):
        run(benchmark, root, "--network", "conv_lstm", "--trained", str(root))


def test_speed_tells_steps_and_growth(benchmark, capsys):
    from posttraining_speed import print_growth, steps

    network = nn.Sequential(nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3))
    images = torch.randn(8, 3, 8, 8, generator=torch.Generator().manual_seed(0))
    shares = {name: share for name, _, share in steps(network, images)}
    assert shares["whole"] == "100.0%"
    parts = ("observe", "factorize", "reconstruct", "compare", "transform")  # and no BatchNorm
    assert sum(float(shares[part].rstrip("%")) for part in parts) == pytest.approx(100, abs=1)
    print_growth("images", {4: (network, images[:4]), 8: (network, images)})
    assert capsys.readouterr().out.splitlines()[-1].split()[5] == "2.00x"
