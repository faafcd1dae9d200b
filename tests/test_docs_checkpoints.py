"""docs/checkpoints.md is true: its blocks run, one after another."""

from __future__ import annotations

from pathlib import Path

import torch
from documents import sections

PAGE = Path(__file__).parents[1] / "docs" / "checkpoints.md"


def test_blocks_run(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    blocks = [b for found in sections(PAGE.read_text(encoding="utf-8")).values() for b in found]
    assert len(blocks) == 3
    namespace: dict[str, object] = {"__name__": "checkpoints"}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for line, source in blocks:
            # Padded with empty lines, so that a traceback shows the line of the page.
            exec(compile("\n" * (line - 1) + source, str(PAGE), "exec"), namespace)
    printed = capsys.readouterr().out
    assert "s per GB" in printed
    assert "2 weights in" in printed
    assert {p.name for p in tmp_path.iterdir()} == {"large.safetensors", "small.safetensors"}
