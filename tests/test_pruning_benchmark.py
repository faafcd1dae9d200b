"""examples/benchmarks/pruning.py on a handful of made-up images and an untrained network."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

FOLDER = Path(__file__).parents[1] / "examples" / "benchmarks"
METHODS = ("lamp", "wanda", "magnitude, refit", "magnitude, refit in 4 rounds")


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    import pruning

    yield pruning
    for name in [n for n, m in sys.modules.items() if _folder(m) == FOLDER]:
        del sys.modules[name]


def _folder(module):
    return Path(getattr(module, "__file__", None) or "/").parent


class Made:
    """Images of noise; quality is how near to 1 the outputs are."""

    unit, better = "accuracy, %", "higher"

    def calibration(self, n, generator):
        return torch.tensor(generator.normal(size=(n, 3, 8, 8)), dtype=torch.float32)

    @torch.no_grad()
    def quality(self, network):
        x = self.calibration(8, np.random.default_rng(9))
        return 100 / (1 + float((network(x) - 1).square().mean()))


@pytest.fixture
def thin(benchmark, monkeypatch):
    from posttraining_tasks import Subject

    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Conv2d(3, 16, 3), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(), nn.Flatten(),
            nn.Linear(256, 10),
        ).eval()  # fmt: skip
    subject = Subject("thin", "resnet20", "w0", network, Made())
    monkeypatch.setattr("posttraining_program.open_subject", lambda *_: subject)


def run(benchmark, root, *more):
    benchmark.main([
        "--data", str(root), "--network", "thin", "--images", "16", "--seeds", "0", "1",
        "--sparsity", "0.5", "0.9", "--methods", *METHODS, "--threads", "1", "--device", "cpu",
        "--output", str(root / "runs"), *more,
    ])  # fmt: skip
    return [json.loads(line) for line in (root / "runs" / "results.jsonl").open()]


def test_every_method_share_and_draw_is_one_result(benchmark, tmp_path, thin, capsys):
    rows = run(benchmark, tmp_path)
    assert len(rows) == 1 + 2 * (1 + 3 * 2)
    for row in rows[1:]:
        assert row["zeros"] == pytest.approx(1 - row["keep"], abs=1e-3)
        assert row["parameters_out"] == row["parameters_in"]
        assert (row["seed"] is None) == (row["settings"] == {"criterion": "lamp"})
    printed = capsys.readouterr().out
    assert "50% zeros" in printed
    assert "90% zeros" in printed
    assert all(f"| {method} " in printed for method in METHODS)


def test_what_is_there_is_not_computed_again(benchmark, tmp_path, thin, monkeypatch):
    rows = run(benchmark, tmp_path)
    fits = []
    fit = benchmark.Pruner.fit

    def counted(self, *arguments):
        fits.append(self.sparsity)
        return fit(self, *arguments)

    monkeypatch.setattr(benchmark.Pruner, "fit", counted)
    assert run(benchmark, tmp_path) == rows
    assert not fits
    path = tmp_path / "runs" / "results.jsonl"
    path.write_text("".join(json.dumps(row) + "\n" for row in rows[:-1]))
    assert run(benchmark, tmp_path)[-1]["quality"] == rows[-1]["quality"]
    assert fits == [pytest.approx(0.9)]


def test_missing_data_and_networks_are_named(benchmark, tmp_path, capsys):
    for given, words in ((["--network", "thin"], "--data is needed"),
                         (["--data", str(tmp_path)], "--network is needed")):  # fmt: skip
        with pytest.raises(SystemExit):
            benchmark.main(given)
        assert words in capsys.readouterr().err


def test_time_and_memory_are_measured(benchmark):
    from pruning_speed import measured

    from skcompress import MagnitudePruner

    taken, held = measured(MagnitudePruner(0.9), nn.Linear(2000, 2000))
    assert taken.cores > 0
    assert held is None or 0 < held < 2**30
