"""Results of benchmarks as lines of a file, so that what is there is not computed again."""

from __future__ import annotations

import json
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from posttraining_tasks import Subject

from skcompress import count_parameters
from skcompress.metrics import count_bytes

# What makes two results the same measurement. Not the method's name: its settings may change.
KEY = ("network", "weights", "test", "settings", "keep", "inputs", "positions", "seed")


class Results:
    """Lines of a file, each one result; appended one by one."""

    def __init__(self, path: Path):
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        lines = path.read_text().splitlines() if path.exists() else []
        self.rows: list[dict[str, Any]] = [json.loads(line) for line in lines]
        self._known = {_key(row) for row in self.rows}

    def __contains__(self, row: dict[str, Any]) -> bool:
        return _key(row) in self._known

    def append(self, row: dict[str, Any]) -> None:
        with self.path.open("a") as file:
            file.write(json.dumps(row) + "\n")
        self.rows.append(row)
        self._known.add(_key(row))


def _key(row: dict[str, Any]) -> str:
    # Older results, and those of programs that set no limit, are without "positions".
    return json.dumps([row.get(name) for name in KEY], sort_keys=True)


def seconds(call: Any) -> tuple[Any, float]:
    """Result of a call, and how long it took."""
    started = perf_counter()
    result = call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return result, perf_counter() - started


def measure_dense(
    subject: Subject, test: int | None, device: str, results: Results
) -> dict[str, Any]:
    """Measure a network as it is, once; gives what all of its results have in common.

    test : how many test inputs it is measured on; None for all
    """
    about = {
        "network": subject.name, "kind": subject.kind, "weights": subject.digest,
        "test": test, "unit": subject.task.unit, "better": subject.task.better,
        "threads": torch.get_num_threads(), "device": device,
    }  # fmt: skip
    dense = {**about, "settings": None, "keep": 1.0, "inputs": 0, "seed": None}
    if dense not in results:
        n = count_parameters(subject.network)
        quality = subject.task.quality(subject.network)
        results.append({**dense, "quality": quality, "parameters_in": n, "parameters_out": n})
    return about


def completed(
    row: dict[str, Any], subject: Subject, compressor: Any, data: Any, *, first: bool = True
) -> dict[str, Any]:
    """Fit a compressor, compress and measure the network; gives the row with what came of it.

    first : whether nothing was taken over from an earlier fit
    """
    _, fit = seconds(lambda: compressor.fit(subject.network, data))
    small, transform = seconds(lambda: compressor.transform(subject.network))
    return {
        **row,
        "quality": subject.task.quality(small),
        "parameters_in": compressor.n_parameters_in_,
        "parameters_out": count_parameters(small),
        "bytes_out": count_bytes(small),
        "first": first,
        "fit_s": fit,
        "transform_s": transform,
    }
