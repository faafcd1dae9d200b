"""Whether a search beats the closed form at the same size, by how much, and in what time.

    python examples/benchmarks/tuning.py --data DIR --network resnet20.npz --keep 0.3
    python examples/benchmarks/tuning.py --data DIR --network resnet20.npz --trials 20 \
        --validation 1000 --test-images 1000
    python examples/benchmarks/tuning.py --cost resnet20 resnet18
    python examples/benchmarks/tuning.py --resnet18

The first two search a trained network: a rank for each stage, or the settings of the global
allocation, or both (`--spaces`), for the best accuracy on validation images at no more than
`--keep` of the parameters. Validation and calibration images are training images, apart from each
other; accuracy on the test images is measured of the closed form (`SVDCompressor(keep)` with the
same calibration images) and of what the search chose, and of nothing else. Studies lie in
`--output`/tuning.db: the same command again goes on where it stopped, and one with more `--trials`
goes further. `--cost` says what a trial costs that shares its factorisations with others, and
`--resnet18` times 200 trials without data; both need no data.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import numpy as np
import torch
from cifar10_data import Images, normalise
from posttraining_tasks import Cifar10, Subject, accuracy, open_subject
from tabulate import tabulate
from torch import Tensor
from tuning_cost import print_cost, print_many

from skcompress import CompressionSearch, SVDCompressor, count_parameters
from skcompress.errors import UnsatisfiedConstraintError
from skcompress.spaces import FloatRange, Options

# What the stages are in, by the kind of network; the first and the last layer stay as they are.
STAGES = ("layer1", "layer2", "layer3")
SETTINGS: dict[str, Any] = {
    "scheme": Options(("auto", "spatial", "output")),
    "sensitivity": FloatRange(0.0, 1.0),
}
MORE: dict[str, Any] = {
    "metric": ...,
    "fold_norm": ...,
    "refit_dense": ...,
}


def space(name: str, keep: float) -> dict[str, Any]:
    """What is searched, for this share of the parameters to keep."""
    # Few results of such ranges are of the right size: the constraint tells the sampler.
    ranks = {stage: FloatRange(0.3 * keep, min(1.0, 2 * keep)) for stage in STAGES}
    return {
        "ranks": {"rank": ranks, **SETTINGS},
        "settings": {"rank": keep, **SETTINGS, **MORE},
        "all": {"rank": ranks, **SETTINGS, **MORE},
    }[name]


class Split(NamedTuple):
    """Training images, for two purposes."""

    calibration: Tensor
    validation: Images


def split(task: Cifar10, n_calibration: int, n_validation: int) -> Split:
    """Draw images for calibration, and others for validation."""
    order = np.random.default_rng(0).permutation(len(task.train.labels))
    chosen = torch.from_numpy(order[: n_calibration + n_validation])
    calibration, validation = chosen[:n_calibration], chosen[n_calibration:]
    return Split(normalise(task.train.pixels[calibration]), task.train.part(validation))


def seconds(call: Callable[[], Any]) -> tuple[Any, float]:
    """Result of a call, and how long it took."""
    started = perf_counter()
    return call(), perf_counter() - started


def closed_form(subject: Subject, parts: Split, keep: float) -> list[Any]:
    """Default global allocation: a row of the table."""
    compressor = SVDCompressor(keep)
    small, took = seconds(lambda: compressor.fit_transform(subject.network, parts.calibration))
    found = accuracy(small, parts.validation), subject.task.quality(small)
    return [f"{keep:.0%}", "closed form", 1, took / 60, count_parameters(small), *found, ""]


def search(subject: Subject, parts: Split, name: str, keep: float, options: Any) -> list[Any]:
    """Search, or go on with it: a row of the table, not filled if nothing is small enough."""
    searched = CompressionSearch(
        SVDCompressor(),
        space(name, keep),
        scoring=lambda small: accuracy(small, parts.validation),
        objectives="score",
        constraints=f"n_parameters <= {keep} * dense",
        n_trials=options.trials,
        storage=f"sqlite:///{options.output / 'tuning.db'}",
        study_name=f"{subject.name}, {keep:g}, {name}, {len(parts.validation.labels)} images",
        random_state=options.seed,
        verbose=1,
    )
    found: list[Any] = ["", "", ""]
    try:
        searched.fit(subject.network, parts.calibration)
    except UnsatisfiedConstraintError as error:
        print(error)
    else:
        best = searched.best_trial_.found
        found = [best.n_parameters, best.score, subject.task.quality(searched.best_model_)]
        print_course(searched)
        print(f"chosen: {searched.best_params_}\n", flush=True)
    minutes = sum(row.seconds or 0 for row in searched.trials_) / 60
    return [f"{keep:.0%}", f"search: {name}", len(searched.trials_), minutes, *found]


def print_course(searched: CompressionSearch) -> None:
    """Print when which accuracy on validation images was reached."""
    lines, minutes, best = [], 0.0, 0.0
    for row in searched.trials_:
        minutes += (row.seconds or 0) / 60
        if row.feasible and row.found.score is not None and row.found.score > best:
            best = row.found.score
            lines.append([row.number + 1, minutes, best])
    header = ["after trials", "minutes", "validation, %"]
    print(f"\n{searched.study_.study_name}\n")
    print(tabulate(lines, header, floatfmt=("d", ".1f", ".2f")), flush=True)


def compare(subject: Subject, options: argparse.Namespace) -> list[list[Any]]:
    """Search one network at every size, and set it against the closed form."""
    parts = split(subject.task, options.images, options.validation)
    dense = count_parameters(subject.network)
    found = accuracy(subject.network, parts.validation), subject.task.quality(subject.network)
    rows: list[list[Any]] = [["100%", "dense", "", "", dense, *found, ""]]
    for keep in options.keep:
        closed = closed_form(subject, parts, keep)
        rows.append(closed)
        for name in options.spaces:
            row = search(subject, parts, name, keep, options)
            rows.append([*row, gained(row[-1], closed[-2], row[3])])
    return rows


def gained(ours: Any, theirs: float, minutes: float) -> str:
    """Points of test accuracy over the closed form, and how many a minute."""
    if ours == "":
        return "none was small enough"
    gain = ours - theirs
    return f"{gain:+.2f} ({gain / max(minutes, 1e-9):+.3f} a minute)"


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", type=Path, help="folder with CIFAR-10; or with a folder cifar10")
    add("--network", nargs="+", default=[], help="weights of ResNets (.npz, .safetensors)")
    add("--keep", type=float, nargs="+", default=[0.5, 0.3], help="of the parameters")
    add("--spaces", nargs="+", default=["ranks", "settings", "all"],
        choices=["ranks", "settings", "all"], help="what is searched")  # fmt: skip
    add("--trials", type=int, default=100, help="of each search, earlier ones among them")
    add("--images", type=int, default=512, help="training images to calibrate with")
    add("--validation", type=int, default=5000, help="other training images to choose by")
    add("--test-images", type=int, help="measure on so many test images only")
    add("--seed", type=int, default=0)
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--threads", type=int, default=torch.get_num_threads(), help="of torch, on a CPU")
    add("--output", type=Path, default=Path("runs/tuning"))
    add("--cost", nargs="+", default=[], choices=["resnet20", "resnet32", "resnet56", "resnet18"],
        help="time trials that share factorisations, on networks with random weights")  # fmt: skip
    add("--resnet18", action="store_true", help="time 200 trials of ResNet-18 without data")
    options = parser.parse_args(arguments)
    if not (options.cost or options.resnet18):
        if options.data is None or not options.data.is_dir():
            parser.error(f"--data is needed, the folder with CIFAR-10; got {options.data}")
        if not options.network:
            parser.error("--network is needed: trained weights of a ResNet")
    return options


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    if options.cost:
        print_cost(options.cost, options.device, options.images)
    if options.resnet18:
        print_many(options.device)
    options.output.mkdir(parents=True, exist_ok=True)
    for given in options.network:
        subject = open_subject(given, Path("."), options.data, options.test_images)
        subject.network.to(options.device)
        rows = compare(subject, options)
        header = ["kept", "", "trials", "minutes", "parameters", "validation, %", "test, %", "gain"]
        floats = ("", "", "d", ".1f", ",d", ".2f", ".2f", "")
        print(f"\n{subject.name}\n\n{tabulate(rows, header, floatfmt=floats)}\n", flush=True)


if __name__ == "__main__":
    main()
