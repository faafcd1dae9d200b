"""What programs that measure compressed networks have in common: their options and their loop."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch
from posttraining_results import Results
from posttraining_tasks import Subject, open_subject

Measure = Callable[[Subject, argparse.Namespace, Results], None]


def parse(
    arguments: list[str] | None,
    description: str | None,
    methods: Iterable[str],
    more: Callable[[Any], object],
    *,
    kinds: str = "CIFAR-10",
    **defaults: Any,
) -> argparse.Namespace:
    """Understand a command line.

    more : adds a program's own options by `parser.add_argument`, which it is given
    kinds : of data, for the message where there is none
    defaults : of options, by name
    """
    parser = argparse.ArgumentParser(
        description=description, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add, known = parser.add_argument, list(methods)
    add("--data", type=Path, help="folder with the data; or with folders cifar10, text, sisfall")
    add("--network", nargs="+", default=[], help="weights (.npz, .safetensors), or runs' folders")
    add("--trained", type=Path, default=Path("runs/sequences"), help="where runs lie, by name")
    add("--images", type=int, nargs="+", default=[512],
        help="numbers of calibration inputs: images, windows of text or of movement")  # fmt: skip
    add("--seeds", type=int, nargs="+", default=[0, 1, 2], help="of the draw of these inputs")
    add("--methods", nargs="+", default=known, choices=known, metavar="METHOD",
        help="of: " + "; ".join(known))  # fmt: skip
    add("--test-images", type=int, help="measure on so many test inputs only")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--threads", type=int, default=torch.get_num_threads(), help="of torch, on a CPU")
    add("--output", type=Path, help="folder of the results")
    add("--table", action="store_true", help="print what --output holds")
    more(add)
    parser.set_defaults(**defaults)
    options = parser.parse_args(arguments)
    if not (options.table or getattr(options, "speed", False)):
        if options.data is None or not options.data.is_dir():
            parser.error(f"--data is needed, the folder with {kinds}; got {options.data}")
        if not options.network:
            parser.error("--network is needed: trained weights, or the folder of a run")
    return options


def measured(options: argparse.Namespace, measure: Measure) -> Results:
    """Let `measure` do for each network what is not yet among the results; gives all of them."""
    results = Results(options.output / "results.jsonl")
    for given in () if options.table else options.network:
        subject = open_subject(given, options.trained, options.data, options.test_images)
        subject.network.to(options.device)
        measure(subject, options, results)
    return results
