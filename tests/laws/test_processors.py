"""Plans do not hang on how a processor rounds: its instructions, and how many cores share a sum."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

# As processors without AVX-512, and without AVX2, compute; and with sums in another order.
PROCESSORS = {
    "AVX2": {"ATEN_CPU_CAPABILITY": "avx2", "MKL_ENABLE_INSTRUCTIONS": "AVX2"},
    "oldest": {"ATEN_CPU_CAPABILITY": "default", "MKL_CBWR": "COMPATIBLE"},
    "two threads": {"OMP_NUM_THREADS": "2", "MKL_NUM_THREADS": "2"},
}
PROGRAM = """
import json
import torch
from data_cases import images, network
from skcompress import LowRankCompressor, SVDCompressor, TuckerCompressor

model, x = network(), images()
inputs = {"images": x, "nothing": torch.zeros_like(x), "alike": x[:1].expand(8, -1, -1, -1)}
plans = {}
for name, given in inputs.items():
    for compressor in (SVDCompressor, TuckerCompressor, LowRankCompressor):
        for settings in ({}, {"sensitivity": 0.5}):
            fitted = compressor(rank=0.6, reconstruction="independent", **settings)
            plan = fitted.fit(model, given).plan_
            rows = [(row.name, row.scheme, row.rank) for row in plan]
            plans[f"{compressor.__name__} on {name}, {settings}"] = rows
print(json.dumps(plans))
"""


def plans(settings: dict[str, str]) -> dict[str, object]:
    tests = Path(__file__).parents[1]
    changed = {
        "OMP_NUM_THREADS": "1",
        "MKL_NUM_THREADS": "1",
        "PYTHONPATH": os.pathsep.join(map(str, (tests, tests / "compressors"))),
        **settings,
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        env={**os.environ, **changed},
        capture_output=True,
        text=True,
        check=False,
    )
    assert not done.returncode, done.stderr
    found: dict[str, object] = json.loads(done.stdout.splitlines()[-1])
    return found


@pytest.fixture(scope="module")
def here():
    return plans({})


@pytest.mark.parametrize("processor", PROCESSORS)
def test_plans_are_the_same_on_every_processor(processor, here):
    there = plans(PROCESSORS[processor])
    assert there.keys() == here.keys()
    for fit, rows in here.items():
        assert there[fit] == rows, fit
