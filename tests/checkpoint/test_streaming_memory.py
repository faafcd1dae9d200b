"""Peak memory follows the largest tensor, not the size of the checkpoint."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

PROGRAM = """
import sys, torch
from pathlib import Path
from skcompress import SVDCompressor, compress_checkpoint

def peak():
    lines = Path("/proc/self/status").read_text().splitlines()
    return 1024 * int(next(line for line in lines if line.startswith("VmHWM")).split()[1])

torch.set_num_threads(1)
source, small = sys.argv[1:]
compress_checkpoint(small, small + ".out", SVDCompressor(0.5))  # imports and the like
before = peak()
compress_checkpoint(source, source + ".out", SVDCompressor(0.5))
print(peak() - before)
"""
ROWS, COLUMNS, N = 120_000, 128, 12


@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="needs Linux")
def test_at_most_four_times_the_largest_tensor(tmp_path):
    generator = torch.Generator().manual_seed(0)

    def drawn(rows: int) -> torch.Tensor:
        return torch.randn(rows, COLUMNS, generator=generator).bfloat16()

    save_file({"a.weight": drawn(300)}, tmp_path / "small.safetensors")
    tensors = {f"{n}.weight": drawn(ROWS) for n in range(N)}
    save_file(tensors, tmp_path / "large.safetensors")
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM, *(str(tmp_path / f"{n}.safetensors") for n in
                                          ("large", "small"))],
        capture_output=True, text=True, check=True, env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    largest = 2 * ROWS * COLUMNS
    # Beside it 40 MB of what an allocator and buffers take.
    assert int(done.stdout) <= 4 * largest + 40e6 < N * largest
