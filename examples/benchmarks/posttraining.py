"""Trained networks compressed without a gradient step, with and without calibration inputs.

    python examples/benchmarks/posttraining.py --data DIR --network resnet20.npz
    python examples/benchmarks/posttraining.py --data DIR --network runs/cifar10/* --seeds 0
    python examples/benchmarks/posttraining.py --data DIR --network transformer conv_lstm \
        --trained runs/sequences --keep 0.7 0.5 0.3
    python examples/benchmarks/posttraining.py --table
    python examples/benchmarks/posttraining.py --speed

Each method is `SVDCompressor` with other settings, or `LowRankCompressor` where CP takes part, of
the package skcompress-tensorly. Calibration inputs are unlabelled and drawn from the
training part, with one generator a seed; quality is measured on the test part. One fit serves all
shares of parameters kept (`warm_start`). Every result is a line of `--output`/results.jsonl,
written at once: the same command again computes what is not there. `--table` prints means and
standard deviations over seeds; `--speed` needs no data and says what it costs.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from posttraining_program import measured, parse
from posttraining_results import Results, completed, measure_dense
from posttraining_speed import print_speed
from posttraining_tables import ELSEWHERE, tables
from posttraining_tasks import Subject
from tqdm import tqdm

from skcompress import LowRankCompressor, SVDCompressor
from skcompress.errors import BudgetError

# What everything at once adds to the defaults, which are sequential, global, all schemes.
EVERYTHING: dict[str, Any] = {"sensitivity": "auto", "refit_dense": True, "pivot": True}

# Settings of SVDCompressor. Those that look at weights alone are fitted without data.
METHODS: dict[str, dict[str, Any]] = {
    "plain, uniform": {"metric": "weights", "allocation": "uniform"},
    "plain, global": {"metric": "weights"},
    "plain, global, with CP": {"decomposition": ["svd", "spatial_svd", "cp"], "metric": "weights"},
    "whitened, uniform (SVD-LLM)": {
        "scheme": "output", "reconstruction": "independent", "allocation": "uniform",
    },
    "whitened, global (BALF-like)": {"scheme": "output", "reconstruction": "independent"},
    "independent": {"reconstruction": "independent"},
    "sequential": {"reconstruction": "sequential"},
    "everything": {"reconstruction": "sequential", **EVERYTHING},
    "everything, with CP": {
        "decomposition": ["svd", "spatial_svd", "cp"], "reconstruction": "sequential", **EVERYTHING,
    },
}  # fmt: skip


def jobs(options: argparse.Namespace) -> Iterator[tuple[dict[str, Any], int, int | None]]:
    """Settings, number of calibration inputs and seed of every fit, alike ones once."""
    seen = []
    for method in options.methods:
        settings = METHODS[method]
        calibrated = settings.get("metric") != "weights"
        draws = product(options.images, options.seeds) if calibrated else [(0, None)]
        for draw in draws:
            if (settings, draw) not in seen:
                seen.append((settings, draw))
                yield settings, *draw


def compress(
    subject: Subject, settings: dict[str, Any], rows: list[dict[str, Any]]
) -> Iterator[dict[str, Any]]:
    """Fit once, then cut at the share that each of `rows` asks for; gives them completed.

    rows : of the same settings, inputs and seed
    """
    n, seed = rows[0]["inputs"], rows[0]["seed"]
    data = subject.task.calibration(n, np.random.default_rng(seed)) if n else None
    kind = LowRankCompressor if "decomposition" in settings else SVDCompressor
    positions = rows[0]["positions"]
    compressor = kind(warm_start=True, random_state=0, max_positions=positions, **settings)
    for number, row in enumerate(rows):
        compressor.set_params(rank=row["keep"])
        try:
            # A later fit takes statistics and factorisations over from the first.
            yield completed(row, subject, compressor, data, first=number == 0)
        except BudgetError as error:
            yield {**row, "quality": None, "note": str(error)}


def measure(subject: Subject, options: argparse.Namespace, results: Results) -> None:
    """Do for one network whatever is not yet among `results`."""
    about = measure_dense(subject, options.test_images, options.device, results)
    for settings, inputs, seed in (bar := tqdm(list(jobs(options)), desc=subject.name)):
        positions = options.positions if inputs else None
        common = {
            **about, "settings": settings, "inputs": inputs, "positions": positions, "seed": seed,
        }  # fmt: skip
        rows = [{**common, "keep": keep} for keep in sorted(options.keep, reverse=True)]
        rows = [row for row in rows if row not in results]
        for row in compress(subject, settings, rows) if rows else ():
            results.append(row)
            shown = row["quality"] if row["quality"] is None else f"{row['quality']:.2f}"
            bar.write(f"{subject.name} {settings} {inputs=} {seed=} {row['keep']:.0%}: {shown}")


def more(add: Any) -> None:
    """Add the options of this program alone."""
    add("--keep", type=float, nargs="+", default=[0.5, 0.3, 0.2, 0.1], help="of the parameters")
    add("--positions", type=int, help="of a batch that a layer's moments use, `max_positions`")
    add("--speed", action="store_true", help="measure time on networks with random weights")


def main(arguments: list[str] | None = None) -> None:
    options = parse(
        arguments,
        __doc__,
        METHODS,
        more,
        kinds="CIFAR-10, tiny Shakespeare or SisFall",
        images=[512, 4096],
        output=Path("runs/posttraining"),
    )
    torch.set_num_threads(options.threads)
    if options.speed:
        print_speed(options.device)
        return
    print(tables(measured(options, measure).rows, METHODS, ELSEWHERE))


if __name__ == "__main__":
    main()
