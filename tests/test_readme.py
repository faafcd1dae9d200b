"""Every Python block of the README runs, in order, in one namespace, as a reader would."""

from __future__ import annotations

import re
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path

import pytest
import torch

README = Path(__file__).parents[1] / "README.md"
NEEDS = re.compile(r"^# pip install -e plugins/(\S+)$", re.MULTILINE)


def python_blocks(text: str) -> list[tuple[int, str]]:
    """Line number of the first line, and source, of each ```python block."""
    found = re.finditer(r"^```python\n(.*?)^```$", text, re.MULTILINE | re.DOTALL)
    return [(text[: m.start(1)].count("\n") + 1, m.group(1)) for m in found]


def missing(source: str) -> list[str]:
    """Packages that a block asks to install first and that are not installed."""
    absent = []
    for package in NEEDS.findall(source):
        try:
            distribution(package)
        except PackageNotFoundError:
            absent.append(package)
    return absent


def test_the_python_blocks_run(capsys):
    blocks = python_blocks(README.read_text(encoding="utf-8"))
    assert len(blocks) > 8
    namespace: dict[str, object] = {"__name__": "readme"}
    with torch.random.fork_rng():
        for line, source in blocks:
            if missing(source):
                continue
            # Padded with empty lines, so that a traceback shows the line of the README.
            code = compile("\n" * (line - 1) + source, str(README), "exec")
            exec(code, namespace)
    assert "parameters" in capsys.readouterr().out


@pytest.mark.parametrize("link", re.findall(r"\]\(([^)#]+)\)", README.read_text(encoding="utf-8")))
def test_links_lead_to_files(link):
    assert link.startswith("http") or (README.parent / link).exists()


def test_every_make_target_that_is_named_exists():
    makefile = (README.parent / "Makefile").read_text(encoding="utf-8")
    named = re.findall(r"`make (\w+)`", README.read_text(encoding="utf-8"))
    assert named
    for target in named:
        assert re.search(rf"^{target}:", makefile, re.MULTILINE)
