"""docs/scaling.md is true: its blocks run, one after another."""

from __future__ import annotations

import re
from pathlib import Path

import torch

PAGE = Path(__file__).parents[1] / "docs" / "scaling.md"


def test_blocks_run(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    text = PAGE.read_text(encoding="utf-8")
    blocks = list(re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL))
    assert len(blocks) == 2
    namespace: dict[str, object] = {"__name__": "scaling"}
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for block in blocks:
            # Padded with empty lines, so that a traceback shows the line of the page.
            padded = "\n" * (text[: block.start(1)].count("\n")) + block[1]
            exec(compile(padded, str(PAGE), "exec"), namespace)


def test_what_it_names_is_there():
    root = PAGE.parents[1]
    for path in re.findall(r"`((?:tests|examples)/[\w/]+\.py)`", PAGE.read_text(encoding="utf-8")):
        assert (root / path).exists(), path
