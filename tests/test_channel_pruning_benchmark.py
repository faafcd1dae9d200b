"""examples/benchmarks/channel_pruning.py on made-up images and an untrained network."""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

pytest.importorskip("skcompress_torch_pruning", reason="its plugin is not installed")

FOLDER = Path(__file__).parents[1] / "examples" / "benchmarks"


class MadeUp:
    """Noise as calibration inputs, and a quality that is the size of the network."""

    unit, better = "thousands", "higher"

    def calibration(self, n, generator):
        return torch.tensor(generator.normal(size=(n, 3, 16, 16)), dtype=torch.float32)

    def quality(self, network):
        return sum(p.numel() for p in network.parameters()) / 1000


@pytest.fixture
def benchmark(monkeypatch):
    pytest.importorskip("skcompress_torch_pruning", reason="the plugin is not installed")
    monkeypatch.syspath_prepend(str(FOLDER))
    import channel_pruning
    from posttraining_tasks import Subject

    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = nn.Sequential(
            nn.Conv2d(3, 16, 3), nn.BatchNorm2d(16), nn.ReLU(), nn.Conv2d(16, 16, 3), nn.ReLU(),
            nn.AdaptiveAvgPool2d(2), nn.Flatten(), nn.Linear(64, 10),
        ).eval()  # fmt: skip
    subject = Subject("thin", "resnet20", "w0", network, MadeUp())
    monkeypatch.setattr("posttraining_program.open_subject", lambda *_: subject)
    yield channel_pruning
    for name in [n for n, m in sys.modules.items() if _folder(m) == FOLDER]:
        del sys.modules[name]


def _folder(module):
    return Path(getattr(module, "__file__", None) or "/").parent


def run(benchmark, folder, *more):
    benchmark.main([
        "--data", str(folder), "--network", "thin", "--images", "8", "--seeds", "0", "1",
        "--keep", "0.7", "0.5", "--methods", "L1", "merge", "--threads", "1", "--device", "cpu",
        "--output", str(folder / "runs"), *more,
    ])  # fmt: skip
    return [json.loads(line) for line in (folder / "runs" / "results.jsonl").open()]


def test_every_method_share_and_draw_is_one_result(benchmark, tmp_path, capsys):
    rows = run(benchmark, tmp_path)
    assert len(rows) == 1 + 2 * 2 * 2
    for row in rows[1:]:
        assert row["parameters_out"] <= row["keep"] * row["parameters_in"]
        assert row["quality"] == row["parameters_out"] / 1000
        assert 0 < row["flops_kept"] < 1
    printed = capsys.readouterr().out
    assert "| merge " in printed
    assert "published" not in printed
    assert np.isfinite([row["divergence"] for row in rows[1:]]).all()


def test_what_is_there_is_not_computed_again(benchmark, tmp_path, monkeypatch, capsys):
    rows = run(benchmark, tmp_path)
    monkeypatch.setattr(benchmark, "prune", None)
    assert run(benchmark, tmp_path) == rows
    benchmark.main(["--table", "--output", str(tmp_path / "runs")])
    assert "| L1 " in capsys.readouterr().out


@pytest.mark.parametrize("arguments", [["--network", "x"], ["--data", "."]])
def test_what_is_missing_is_named(benchmark, arguments, capsys):
    with pytest.raises(SystemExit):
        benchmark.main(arguments)
    assert "is needed" in capsys.readouterr().err
