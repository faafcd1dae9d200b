"""Pretrained networks of other kinds than image classifiers, compressed without training.

    python examples/benchmarks/real.py --data DIR
    python examples/benchmarks/real.py --data DIR --networks pitch --methods "with data" --seeds 0 1
    python examples/benchmarks/real.py --table

- pitch: CREPE tiny, a convolutional network with kernels of 64 taps, 0.5 M parameters
- speaker: the encoder of Resemblyzer, an LSTM of three layers, 1.4 M
- antibody: AntiBERTy, a BERT of eight layers, 25.8 M; needs transformers

`--data` holds their weights and inputs. What is missing is said when the program is started, with
how to get it: the weights come from wheels that pip downloads.

Each fit starts from nothing, as a user's does: no statistics are shared. Beside its seconds on the
clock stand those of all cores together, which other programs disturb less. Memory is the most that
the process held meanwhile, with torch, the network and its inputs (Linux). Calibration inputs are
all that there are, or `--inputs` of them, drawn with a seed. Every result is a line of
`--output`/results.jsonl, written at once: the same command again computes what is not there.
"""

from __future__ import annotations

import argparse
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import torch
from posttraining_results import Results, measure_dense
from posttraining_speed import time
from posttraining_tables import cell
from posttraining_tasks import Subject
from pruning_speed import Peak
from real_tasks import NETWORKS, open_real
from tabulate import tabulate
from torch import nn
from tqdm import tqdm

from skcompress import count_parameters
from skcompress.errors import BudgetError
from skcompress.registry import resolve

PLAIN: dict[str, Any] = {"compressor": "svd", "metric": "weights"}
DATA: dict[str, Any] = {"compressor": "svd"}
UNIFORM: dict[str, Any] = {"allocation": "uniform"}
CP: dict[str, Any] = {"compressor": "low_rank", "decomposition": ["svd", "spatial_svd", "cp"]}
ZEROS: dict[str, Any] = {"compressor": "pruner", "criterion": "lamp", "refit": True}

# The registered compressor and its settings. Those that look at weights alone get no data.
METHODS: dict[str, dict[str, Any]] = {
    "no data": PLAIN,
    "no data, uniform": {**PLAIN, **UNIFORM},
    "no data, pivot": {**PLAIN, "pivot": True},
    "with data": DATA,
    "with data, uniform": {**DATA, **UNIFORM},
    "with data, pivot": {**DATA, "pivot": True},
    "with data, pivot, uniform": {**DATA, "pivot": True, **UNIFORM},
    "Tucker, no data": {"compressor": "tucker", "metric": "weights"},
    "Tucker, with data": {"compressor": "tucker"},
    "CP among others, no data": {**CP, "metric": "weights"},
    "LAMP zeros, refit": ZEROS,
}

SHARES = [0.9, 0.8, 0.7, 0.5, 0.3]
ZEROS_SHARES = [0.5, 0.3]  # of the weights that stay, for pruners


def jobs(options: argparse.Namespace, about: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Give what is to be measured of one network, as rows without results."""
    for name in options.methods:
        settings = METHODS[name]
        inputs = 0 if settings.get("metric") == "weights" else options.inputs
        shares = SHARES if settings["compressor"] != "pruner" else ZEROS_SHARES
        for keep in options.keep or shares:
            for seed in options.seeds if inputs != 0 else [None]:
                yield {
                    **about, "settings": settings, "keep": keep, "inputs": inputs, "seed": seed,
                }  # fmt: skip


def measure(subject: Subject, options: argparse.Namespace, results: Results) -> None:
    """Do for one network whatever is not yet among `results`."""
    about = measure_dense(subject, None, "cpu", results)
    rows = [row for row in jobs(options, about) if row not in results]
    for row in (bar := tqdm(rows, desc=subject.name)):
        found = compressed(row, subject)
        results.append(found)
        shown = found.get("note") or f"{found['quality']:.2f}, {found['seconds']:.1f} s"
        bar.write(f"{subject.name} {row['settings']} {row['keep']:.0%}: {shown}")


def compressed(row: dict[str, Any], subject: Subject) -> dict[str, Any]:
    """Fit what a row asks for, compress and measure; gives the row completed."""
    settings, keep, task = dict(row["settings"]), row["keep"], subject.task
    name = settings.pop("compressor")
    share = {"sparsity": round(1 - keep, 6)} if name == "pruner" else {"rank": keep}
    compressor = resolve("compressors", name)(**share, random_state=0, **settings)
    data = None
    if row["inputs"] != 0:
        data = task.calibration(row["inputs"], np.random.default_rng(row["seed"]))
    made: list[nn.Module] = []
    try:
        with Peak() as peak:
            taken = time(lambda: made.append(compressor.fit_transform(subject.network, data)))
    except BudgetError as error:
        return {**row, "quality": None, "note": str(error)}
    figures = task.figures(made[0])
    return {
        **row,
        "quality": figures[task.unit],
        "figures": figures,
        "divergence": compressor.report_.divergence,
        "parameters_in": compressor.n_parameters_in_,
        "parameters_out": count_parameters(made[0]),
        "seconds": taken.wall,
        "seconds of all cores": taken.cores,
        "memory": peak.most or None,
    }


def tables(rows: list[dict[str, Any]]) -> str:
    """One table for each network, methods downwards, shares kept to the right."""
    texts = []
    for dense in (row for row in rows if row["settings"] is None):
        own = [row for row in rows if row["weights"] == dense["weights"] and row["settings"]]
        keeps = sorted({row["keep"] for row in own}, reverse=True)
        header = ["", *(f"{keep:.0%} kept" for keep in keeps), "s", "s of all cores", "MiB"]
        texts.append(
            f"{dense['network']}: {dense['parameters_in']:,} parameters, {dense['quality']:.2f} "
            f"({dense['unit']}) dense; threads: {dense['threads']}\n\n"
            + tabulate(
                list(_lines(dense, own, keeps)),
                header,
                tablefmt="github",
                colalign=["left", *("right" for _ in header[1:])],
                disable_numparse=True,
            )
        )
    return "\n\n".join(texts)


def _lines(
    dense: dict[str, Any], rows: list[dict[str, Any]], keeps: list[float]
) -> Iterator[list[str]]:
    for name, settings in METHODS.items():
        alike = [row for row in rows if row["settings"] == settings]
        for inputs in sorted({row["inputs"] for row in alike}, key=lambda n: n or 1 << 30):
            own = [row for row in alike if row["inputs"] == inputs]
            fits = [row for row in own if "seconds" in row]
            yield [
                name + (f", {inputs} inputs" if inputs else ""),
                *(cell(dense, [row for row in own if row["keep"] == keep]) for keep in keeps),
                *(_span([row[f] for row in fits]) for f in ("seconds", "seconds of all cores")),
                _span([row["memory"] / 2**20 for row in fits if row["memory"]]),
            ]


def _span(values: list[float]) -> str:
    """The least and the greatest."""
    if not values:
        return ""
    ends = [f"{end:.0f}" if end >= 10 else f"{end:.1f}" for end in (min(values), max(values))]
    return " to ".join(dict.fromkeys(ends))


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", type=Path, help="folder with the weights and inputs")
    add("--antibody", type=Path, help="folder of the antibody model, if it is not in --data")
    add("--networks", nargs="+", default=list(NETWORKS), choices=list(NETWORKS))
    add("--methods", nargs="+", default=list(METHODS), choices=list(METHODS), metavar="METHOD",
        help="of: " + "; ".join(METHODS))  # fmt: skip
    add("--keep", type=float, nargs="+",
        help=f"of the parameters; {SHARES}, of pruned weights {ZEROS_SHARES}")  # fmt: skip
    add("--inputs", type=int, help="how many calibration inputs; all of the pack otherwise")
    add("--seeds", type=int, nargs="+", default=[0], help="of the draw of these inputs")
    add("--threads", type=int, default=torch.get_num_threads(), help="of torch")
    add("--output", type=Path, default=Path("runs/real"), help="folder of the results")
    add("--table", action="store_true", help="print what --output holds")
    options = parser.parse_args(arguments)
    if not options.table and (options.data is None or not options.data.is_dir()):
        parser.error(f"--data is needed, the folder with weights and inputs; got {options.data}")
    return options


def main(arguments: list[str] | None = None) -> None:
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    results = Results(options.output / "results.jsonl")
    for name in () if options.table else options.networks:
        measure(open_real(name, options.data, options.antibody), options, results)
    print(tables(results.rows))


if __name__ == "__main__":
    main()
