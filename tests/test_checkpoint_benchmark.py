"""examples/benchmarks/checkpoint.py with shapes a hundred times smaller."""

from __future__ import annotations

import re
import sys
from pathlib import Path

import pytest

FOLDER = Path(__file__).parents[1] / "examples" / "benchmarks"


@pytest.fixture
def benchmark(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    import checkpoint

    yield checkpoint
    sys.modules.pop("checkpoint", None)


def test_sizes_are_those_of_a_llama_of_3_billion_parameters(benchmark):
    assert [benchmark.layers_in(size) for size in (1, 2, 4, 6, 9)] == [1, 6, 16, 26, 28]
    layer = sum(out * inputs for out, inputs in benchmark.SHAPES.values())
    assert benchmark.LARGEST / 2 + 28 * layer == pytest.approx(3.2e9, rel=0.01)


def test_each_way_has_a_line(benchmark, monkeypatch, tmp_path, capsys):
    monkeypatch.setattr(benchmark, "TOKENS", 512)
    monkeypatch.setattr(benchmark, "WIDTH", 64)
    small = {name: tuple(n // 48 for n in shape) for name, shape in benchmark.SHAPES.items()}
    monkeypatch.setattr(benchmark, "SHAPES", small)
    config = {"hidden_size": 64, "intermediate_size": 170, "vocab_size": 512, "head_dim": 8,
              "num_attention_heads": 8, "num_key_value_heads": 8}  # fmt: skip
    config = {**benchmark.CONFIG, **config, "head_dim": 8}
    small |= {"self_attn.k_proj": (64, 64), "self_attn.v_proj": (64, 64)}
    monkeypatch.setattr(benchmark, "CONFIG", config)

    def measured(way, folder):
        {"compress": benchmark.compress, "loop": benchmark.loop}[way](folder)
        return 1.0, benchmark.peak()

    monkeypatch.setattr(benchmark, "measured", measured)
    benchmark.run([0.001], True, str(tmp_path))
    lines = capsys.readouterr().out.splitlines()[3:]
    assert [re.split(r"\s+", line.strip())[1] for line in lines] == ["compress", "loop"]
    assert not list(tmp_path.iterdir())
