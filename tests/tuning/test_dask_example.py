"""The example on a Dask cluster, small."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from importlib.util import find_spec
from pathlib import Path

import pytest

# The example imports them, in a process of its own.
pytestmark = pytest.mark.skipif(
    not (find_spec("distributed") and find_spec("optuna_integration")),
    reason="no Dask: pip install 'skcompress[dask]'",
)

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
