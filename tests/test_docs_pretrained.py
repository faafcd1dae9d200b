"""docs/pretrained.md is true: its blocks run, one after another."""

from __future__ import annotations

import re
from pathlib import Path

import torch
from documents import sections

PAGE = Path(__file__).parents[1] / "docs" / "pretrained.md"


def test_the_page_runs(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for blocks in sections(PAGE.read_text(encoding="utf-8")).values():
            for line, source in blocks:
                # Padded with empty lines, so that a traceback shows the line of the page.
                exec(compile("\n" * (line - 1) + source, str(PAGE), "exec"), namespace)
    assert [path.name for path in tmp_path.iterdir()] == ["small.safetensors"]
    printed = capsys.readouterr().out
    assert "divergence of the outputs on the data" in printed
    assert len(re.findall(r"^\d\d% kept: [01]\.\d{3}, ", printed, re.MULTILINE)) == 4
    assert all(f"\n{name}: " in printed for name in namespace["tried"])
    ids = torch.arange(70 * 3).reshape(70, 3)
    cut = namespace["batches"](ids, ids > 0)
    assert [batch["input_ids"].shape[0] for batch in cut] == [32, 32, 6]
    assert torch.equal(torch.cat([batch["attention_mask"] for batch in cut]), ids > 0)


def test_settings_it_names_are_there():
    import skcompress

    known = skcompress.SVDCompressor().get_params()
    named = re.findall(r"`(\w+)=", PAGE.read_text(encoding="utf-8"))
    assert len(named) > 5
    assert set(named) <= known.keys()
