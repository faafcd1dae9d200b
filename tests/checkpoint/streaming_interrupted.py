"""Compresses a small checkpoint again and again, each time killed at another moment.

Run as `python streaming_interrupted.py FOLDER N`: FOLDER has `in`, a folder of transformers.
Processes are forked from this one, so that none has to import torch anew.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import sys
import time
from pathlib import Path

import torch

from skcompress import SVDCompressor, compress_checkpoint


def compress(folder: Path, out: str) -> None:
    """The work that is interrupted."""
    compress_checkpoint(folder / "in", folder / out, SVDCompressor(0.6), max_shard_size=100_000)


def child(folder: Path, out: str) -> int:
    """Start it in a process of its own; gives its number."""
    number = os.fork()
    if number == 0:
        try:
            compress(folder, out)
        finally:
            os._exit(0)
    return number


def files(folder: Path) -> dict[str, bytes]:
    """What a folder holds."""
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def main(folder: Path, n_kills: int) -> None:
    """Kill N processes, of as many runs as that takes; each run has to end as the first."""
    torch.set_num_threads(1)
    compress(folder, "first")  # all imports are done before the clock starts
    start = time.perf_counter()
    os.waitpid(child(folder, "whole"), 0)
    duration = time.perf_counter() - start
    expected = files(folder / "whole")
    chance = random.Random(0)
    kills = runs = resumed = 0
    while kills < n_kills:
        number = child(folder, "out")
        time.sleep(chance.uniform(0, duration))
        os.kill(number, signal.SIGKILL)
        _, status = os.waitpid(number, 0)
        kills += os.WIFSIGNALED(status)
        if (folder / "out").exists():
            assert files(folder / "out") == expected, f"after {kills} kills"
            shutil.rmtree(folder / "out")
            runs += 1
        else:
            resumed += (folder / ".out.unfinished" / "journal").exists()
    compress(folder, "out")
    assert files(folder / "out") == expected
    assert not (folder / ".out.unfinished").exists()
    print(kills, runs + 1, resumed)


if __name__ == "__main__":
    main(Path(sys.argv[1]), int(sys.argv[2]))
