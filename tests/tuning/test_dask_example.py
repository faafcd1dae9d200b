"""The example on a Dask cluster, small."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("distributed", reason="no Dask: pip install 'skcompress[dask]'")
pytest.importorskip("optuna_integration", reason="no optuna-integration: 'skcompress[dask]'")

EXAMPLE = Path(__file__).parents[2] / "examples" / "tuning_dask.py"


def test_workers_of_a_cluster_share_one_search():
    command = [sys.executable, str(EXAMPLE), "--workers", "2", "--trials", "8"]
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        command, env=environment, capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    n_trials, *shares = map(int, re.findall(r"\d+", done.stdout.splitlines()[0]))
    # Each ends the trial that it is at when there are enough.
    assert 8 <= n_trials <= 9
    assert len(shares) == 2
    assert sum(shares) >= n_trials
    assert "accuracy 0." in done.stdout
