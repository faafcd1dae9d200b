"""examples/smooth_training.py, with few epochs."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

pytest.importorskip("skorch")


def test_the_whole_program(monkeypatch, capsys, tmp_path):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "examples"))
    import smooth_training

    strengths = {"nuclear_norm": (0.1,), "second_difference": (0.01, 1e3)}
    monkeypatch.setattr(smooth_training, "STRENGTHS", strengths)
    rows = smooth_training.main(["--epochs", "2", "--output", str(tmp_path / "new")])
    printed = capsys.readouterr().out
    # A penalty so strong that nothing is learnt is not chosen.
    assert [row[0] for row in rows] == ["none", "nuclear_norm 0.1", "second_difference 0.01"]
    assert all(cell in printed for row in rows for cell in row)
    assert (tmp_path / "new" / "spectra.png").read_bytes().startswith(b"\x89PNG")
    for name in ("smooth_training", "quickstart"):
        sys.modules.pop(name)
