"""Trained networks pruned without fine-tuning, by every criterion, with and without a refit.

    python examples/benchmarks/pruning.py --data DIR --network resnet20.npz
    python examples/benchmarks/pruning.py --data DIR --network runs/cifar10/* --seeds 0
    python examples/benchmarks/pruning.py --table
    python examples/benchmarks/pruning.py --speed

Each method is `Pruner` with other settings. Networks, data, calibration inputs and results are
those of posttraining.py: unlabelled training inputs, quality on the test part, one line of
`--output`/results.jsonl for each result, and what is there is not computed again. Statistics of
one draw serve all fits with it. Networks trained smooth and plain ones are told apart by the names
of their runs. `--speed` needs no data:
time and memory of pruning models with random weights.
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
from posttraining_tables import tables
from posttraining_tasks import Subject
from pruning_speed import print_speed
from tqdm import tqdm

from skcompress import Pruner
from skcompress.fitting.memo import Memo, share

WITHOUT_DATA = ("random", "magnitude", "lamp")
WITH_DATA = ("wanda", "obs", "taylor", "fisher", "lrp")
ROUNDS = 4

# Settings of Pruner, by criterion. What looks at weights alone is fitted without data. For
# comparison, scores of all weights under one threshold as they are; without a refit batch
# normalisations are left then, but for OBS, which changes what stays.
SCORED: dict[str, dict[str, Any]] = {
    **{name: {"criterion": name} for name in WITHOUT_DATA},
    **{name: {"criterion": name, "allocation": "relative"} for name in WITH_DATA},
}
GLOBAL: dict[str, dict[str, Any]] = {
    f"{name}, global": {"criterion": name, "allocation": "global"} for name in WITH_DATA
}
LEFT: dict[str, Any] = {"recalibrate_norm": False}
METHODS: dict[str, dict[str, Any]] = {
    **SCORED,
    **{name: s if s["criterion"] == "obs" else {**s, **LEFT} for name, s in GLOBAL.items()},
    **{f"{name}, refit": {**s, "refit": True} for name, s in {**SCORED, **GLOBAL}.items()},
    **{
        f"{name}, refit in {ROUNDS} rounds": {**SCORED[name], "refit": True, "refit_rounds": ROUNDS}
        for name in ("magnitude", "lamp", "wanda")
    },
}


def jobs(options: argparse.Namespace) -> Iterator[tuple[int, int | None, list[dict[str, Any]]]]:
    """Number of calibration inputs and seed of every draw, and the settings fitted with it."""
    kinds: dict[bool, list[dict[str, Any]]] = {False: [], True: []}
    for method in options.methods:
        settings = METHODS[method]
        kinds[bool(settings.get("refit")) or settings["criterion"] in WITH_DATA].append(settings)
    yield 0, None, kinds[False]
    for inputs, seed in product(options.images, options.seeds):
        yield inputs, seed, kinds[True]


def prune(subject: Subject, row: dict[str, Any], data: Any, shared: Memo) -> dict[str, Any]:
    """Fit, prune and measure; gives the row completed."""
    first = not len(shared)
    pruner = Pruner(sparsity=1 - row["keep"], random_state=0, **row["settings"])
    return {
        **completed(row, subject, share(pruner, shared), data, first=first),
        "nonzeros": pruner.n_nonzeros_out_,
        "zeros": pruner.sparsity_,
        "divergence": pruner.report_.divergence,
    }


def measure(subject: Subject, options: argparse.Namespace, results: Results) -> None:
    """Do for one network whatever is not yet among `results`."""
    about = measure_dense(subject, options.test_images, options.device, results)
    for inputs, seed, methods in (bar := tqdm(list(jobs(options)), desc=subject.name)):
        data = subject.task.calibration(inputs, np.random.default_rng(seed)) if inputs else None
        shared = Memo()
        for settings, sparsity in product(methods, options.sparsity):
            keep = round(1 - sparsity, 6)
            row = {**about, "settings": settings, "keep": keep, "inputs": inputs, "seed": seed}
            if row not in results:
                row = prune(subject, row, data, shared)
                results.append(row)
                shown = f"{sparsity:.0%} zeros: {row['quality']:.2f}"
                bar.write(f"{subject.name} {settings} {inputs=} {seed=} {shown}")


def more(add: Any) -> None:
    """Add the options of this program alone."""
    add("--sparsity", type=float, nargs="+", default=[0.5, 0.7, 0.8, 0.9, 0.95],
        help="shares of zeros")  # fmt: skip
    add("--speed", action="store_true", help="measure time and memory on random weights")


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments, __doc__, METHODS, more, output=Path("runs/pruning"))
    torch.set_num_threads(options.threads)
    if options.speed:
        print_speed(options.device)
        return
    print(tables(measured(options, measure).rows, METHODS, column="{gone:.0%} zeros"))


if __name__ == "__main__":
    main()
