"""docs/saving.md is true, and docs/format.md names what is in a file."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch
from documents import sections
from safetensors import safe_open

DOCS = Path(__file__).parents[1] / "docs"


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_the_page_runs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, Any] = {}
    blocks = sections((DOCS / "saving.md").read_text())["Save and load"]
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        for _, source in blocks:
            exec(source, namespace)
    assert {p.name for p in tmp_path.iterdir()} == {"small.safetensors", "plain.pt", "plain.ts"}
    with torch.random.fork_rng(devices=[]):
        for _, source in sections((DOCS / "saving.md").read_text())["Hugging Face"]:
            exec(source, namespace)
    assert type(namespace["again"]) is type(namespace["small"])
    assert namespace["again"].lm_head.kind == "linear"
    page = (DOCS / "format.md").read_text()
    with safe_open(tmp_path / "small.safetensors", "pt") as file:
        metadata = file.metadata()
    assert all(f"| `{key}` |" in page for key in metadata)
    structure = json.loads(metadata["skcompress.structure"])
    assert all(f"| `{key}` |" in page for key in structure)
