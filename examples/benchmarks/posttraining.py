"""Trained networks compressed without a gradient step, with and without calibration inputs.

    python examples/benchmarks/posttraining.py --data DIR --network resnet20.npz
    python examples/benchmarks/posttraining.py --data DIR --network runs/cifar10/* --seeds 0
    python examples/benchmarks/posttraining.py --data DIR --network transformer conv_lstm \
        --trained runs/sequences --keep 0.7 0.5 0.3
    python examples/benchmarks/posttraining.py --table
    python examples/benchmarks/posttraining.py --speed

Each method is `SVDCompressor` with other settings, or `LowRankCompressor` where CP takes part, of
the package skcompress-tensorly. Calibration inputs are unlabelled and drawn from the
training part, with one generator a seed; quality is measured on the test part. Statistics and
factorisations of one draw serve all fits with it (`share`), and the errors of single layers are not
measured: "first fit" in the table is the time of those that found nothing. Every result is a line
of `--output`/results.jsonl, written at once: the same command again computes what is not there.
`--table` prints means and standard deviations over seeds; `--speed` needs no data and says what it
costs.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from posttraining_program import measured, parse
from posttraining_results import Results, completed, measure_dense
from posttraining_speed import print_speed
from posttraining_tables import ELSEWHERE, tables
from posttraining_tasks import Subject
from torch import Tensor
from tqdm import tqdm

from skcompress import LowRankCompressor, SVDCompressor
from skcompress.errors import BudgetError
from skcompress.fitting.memo import Memo, share

# What everything at once adds to the defaults, which are sequential, global, all schemes.
EVERYTHING: dict[str, Any] = {
    "metric": "fisher", "sensitivity": "auto", "refit_dense": True, "pivot": True,
}  # fmt: skip

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
    "everything, with sparse terms": {
        "decomposition": ["svd", "spatial_svd", "low_rank_sparse"], "reconstruction": "sequential",
        **EVERYTHING,
    },
    "everything, with CP": {
        "decomposition": ["svd", "spatial_svd", "cp"], "reconstruction": "sequential", **EVERYTHING,
    },
}  # fmt: skip


def jobs(options: argparse.Namespace) -> Iterator[tuple[int, int | None, list[dict[str, Any]]]]:
    """Number of calibration inputs and seed of every draw, and the settings fitted with it."""
    kinds: dict[bool, list[dict[str, Any]]] = {True: [], False: []}
    for method in options.methods:
        settings = METHODS[method]
        alike = kinds[settings.get("metric") != "weights"]
        if settings not in alike:
            alike.append(settings)
    if kinds[False]:
        yield 0, None, kinds[False]
    if kinds[True]:
        for n in options.images:
            for seed in options.seeds:
                yield n, seed, kinds[True]


def compress(
    subject: Subject, rows: list[dict[str, Any]], data: Tensor | None, shared: Memo
) -> Iterator[dict[str, Any]]:
    """Fit what `rows` ask for; gives them completed."""
    for row in rows:
        settings = row["settings"]
        kind = LowRankCompressor if "decomposition" in settings else SVDCompressor
        compressor = kind(
            rank=row["keep"],
            random_state=0,
            max_positions=row["positions"],
            measure=False,
            **settings,
        )
        try:
            first = not len(shared)
            yield completed(row, subject, share(compressor, shared), data, first=first)
        except BudgetError as error:
            yield {**row, "quality": None, "note": str(error)}


def measure(subject: Subject, options: argparse.Namespace, results: Results) -> None:
    """Do for one network whatever is not yet among `results`."""
    about = measure_dense(subject, options.test_images, options.device, results)
    for inputs, seed, methods in (bar := tqdm(list(jobs(options)), desc=subject.name)):
        common = {
            **about, "inputs": inputs, "positions": options.positions if inputs else None,
            "seed": seed,
        }  # fmt: skip
        rows = [
            {**common, "settings": settings, "keep": keep}
            for settings in methods
            for keep in sorted(options.keep, reverse=True)
        ]
        rows = [row for row in rows if row not in results]
        if not rows:
            continue
        data = subject.task.calibration(inputs, np.random.default_rng(seed)) if inputs else None
        for row in compress(subject, rows, data, Memo()):
            results.append(row)
            shown = row["quality"] if row["quality"] is None else f"{row['quality']:.2f}"
            settings, keep = row["settings"], row["keep"]
            bar.write(f"{subject.name} {settings} {inputs=} {seed=} {keep:.0%}: {shown}")


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
