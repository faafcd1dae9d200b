"""Whole channels removed from trained networks, without a gradient step.

    python examples/benchmarks/channel_pruning.py --data DIR --network resnet20.npz resnet56.npz
    python examples/benchmarks/channel_pruning.py --table

Each method is `ChannelPruner`, of the package skcompress-torch-pruning, with other settings;
`--keep` is the share of the parameters that stays. Calibration inputs are drawn from the training
part, without their labels; quality is measured on the test part. Every result is a line of
`--output`/results.jsonl, written at once: the same command again computes what is not there.
`--table` prints means and standard deviations over seeds.
"""

from __future__ import annotations

import argparse
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import torch
from posttraining_program import measured, parse
from posttraining_results import Results, completed, measure_dense
from posttraining_tables import tables
from posttraining_tasks import Subject
from tqdm import tqdm

from skcompress import ChannelPruner

# By what channels go, and whether what stays is fitted to do without them.
METHODS: dict[str, dict[str, Any]] = {
    "L1": {"criterion": "l1", "refit": False},
    "L2": {"criterion": "l2", "refit": False},
    "BatchNorm": {"criterion": "batch_norm", "refit": False},
    "Taylor": {"criterion": "taylor", "refit": False},
    "LRP": {"criterion": "lrp", "refit": False},
    "random, refit": {"criterion": "random", "refit": "all"},
    "L2, refit": {"criterion": "l2", "refit": "all"},
    "Taylor, refit": {"criterion": "taylor", "refit": "all"},
    "LRP, refit": {"criterion": "lrp", "refit": "all"},
    "merge": {"criterion": "merge"},
    "merge, uniform": {"criterion": "merge", "allocation": "uniform"},
}


def prune(subject: Subject, row: dict[str, Any]) -> dict[str, Any]:
    """Remove channels as a row says, and complete it with what came of it."""
    data = subject.task.calibration(row["inputs"], np.random.default_rng(row["seed"]))
    data = data.to(next(subject.network.parameters()).device)
    pruner = ChannelPruner(1 - row["keep"], random_state=row["seed"], **row["settings"])
    done = completed(row, subject, pruner, data)
    flops = pruner.n_flops_out_ / pruner.n_flops_in_
    return {**done, "flops_kept": flops, "divergence": pruner.report_.divergence}


def measure(subject: Subject, options: argparse.Namespace, results: Results) -> None:
    """Do for one network whatever is not yet among `results`."""
    about = measure_dense(subject, options.test_images, options.device, results)
    jobs = list(product(options.methods, options.keep, options.images, options.seeds))
    for method, keep, inputs, seed in (bar := tqdm(jobs, desc=subject.name)):
        row = {**about, "settings": METHODS[method], "keep": keep, "inputs": inputs, "seed": seed}
        if row not in results:
            done = prune(subject, row)
            results.append(done)
            bar.write(f"{subject.name} {method} {keep:.0%} {seed=}: {done['quality']:.2f}")


def more(add: Any) -> None:
    """Add the options of this program alone."""
    add("--keep", type=float, nargs="+", default=[0.7, 0.5], help="of the parameters")


def main(arguments: list[str] | None = None) -> None:
    options = parse(
        arguments,
        __doc__,
        METHODS,
        more,
        trained=Path("runs/cifar10"),
        output=Path("runs/channel_pruning"),
    )
    torch.set_num_threads(options.threads)
    print(tables(measured(options, measure).rows, METHODS))


if __name__ == "__main__":
    main()
