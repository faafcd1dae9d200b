"""examples/tuning.py, with few trials and epochs."""

from __future__ import annotations

import sys
from pathlib import Path

import optuna
import pytest

pytest.importorskip("skorch")


def test_the_whole_program(monkeypatch, capsys, tmp_path):
    monkeypatch.syspath_prepend(str(Path(__file__).parents[1] / "examples"))
    import tuning

    storage = f"sqlite:///{tmp_path}/tuning.db"
    arguments = ["--trials", "3", "--epochs", "2", "--storage", storage]
    rows = tuning.main(arguments)
    printed = capsys.readouterr().out
    assert [row[0] for row in rows] == [
        "no penalty, search compression",
        "default penalty, search compression",
        "search everything",
    ]
    assert all(cell in printed for row in rows for cell in row)
    joint = optuna.load_study(study_name="search everything", storage=storage)
    penalty = joint.trials[0].params["regularizer"]
    assert list(joint.trials[0].params) == [
        "compressor__rank", "compressor__scheme", "max_epochs",
        "regularizer", f"regularizer.{penalty}.weight",
    ]  # fmt: skip
    # Started again it trains nothing, and chooses the same.
    again = tuning.main(arguments)
    assert [row[2:] for row in again] == [row[2:] for row in rows]
    assert len(optuna.load_study(study_name="search everything", storage=storage).trials) == 3
    for name in ("tuning", "quickstart"):
        sys.modules.pop(name)
