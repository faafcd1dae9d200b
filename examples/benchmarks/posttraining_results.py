"""Results of benchmarks as lines of a file, so that what is there is not computed again."""

from __future__ import annotations

import json
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from posttraining_tasks import Subject

from skcompress import count_parameters

# What makes two results the same measurement. Not the method's name: its settings may change.
KEY = ("network", "weights", "test", "settings", "keep", "inputs", "positions", "seed")


class Results:
 Without a limit on positions, results are without that field."""Lines of a file, each one result; appended one by one."""

 Without a limit on positions, results are without that field.def __init__(self, path: Path):
 Without a limit on positions, results are without that field.    self.path = path
 Without a limit on positions, results are without that field.    path.parent.mkdir(parents=True, exist_ok=True)
 Without a limit on positions, results are without that field.    lines = path.read_text().splitlines() if path.exists() else []
 Without a limit on positions, results are without that field.    self.rows: list[dict[str, Any]] = [json.loads(line) for line in lines]
 Without a limit on positions, results are without that field.    self._known = {_key(row) for row in self.rows}

 Without a limit on positions, results are without that field.def __contains__(self, row: dict[str, Any]) -> bool:
 Without a limit on positions, results are without that field.    return _key(row) in self._known

 Without a limit on positions, results are without that field.def append(self, row: dict[str, Any]) -> None:
 Without a limit on positions, results are without that field.    with self.path.open("a") as file:
 Without a limit on positions, results are without that field.        file.write(json.dumps(row) + "\n")
 Without a limit on positions, results are without that field.    self.rows.append(row)
 Without a limit on positions, results are without that field.    self._known.add(_key(row))


def _key(row: dict[str, Any]) -> str:
 Without a limit on positions, results are without that field.# Without a limit on positions, results are without that field.
 Without a limit on positions, results are without that field.return json.dumps([row.get(name) for name in KEY], sort_keys=True)


def seconds(call: Any) -> tuple[Any, float]:
 Without a limit on positions, results are without that field."""Result of a call, and how long it took."""
 Without a limit on positions, results are without that field.started = perf_counter()
 Without a limit on positions, results are without that field.result = call()
 Without a limit on positions, results are without that field.if torch.cuda.is_available():
 Without a limit on positions, results are without that field.    torch.cuda.synchronize()
 Without a limit on positions, results are without that field.return result, perf_counter() - started


def measure_dense(
 Without a limit on positions, results are without that field.subject: Subject, test: int | None, device: str, results: Results
) -> dict[str, Any]:
 Without a limit on positions, results are without that field."""Measure a network as it is, once; gives what all of its results have in common.

 Without a limit on positions, results are without that field.test : how many test inputs it is measured on; None for all
 Without a limit on positions, results are without that field."""
 Without a limit on positions, results are without that field.about = {
 Without a limit on positions, results are without that field.    "network": subject.name, "kind": subject.kind, "weights": subject.digest,
 Without a limit on positions, results are without that field.    "test": test, "unit": subject.task.unit, "better": subject.task.better,
 Without a limit on positions, results are without that field.    "threads": torch.get_num_threads(), "device": device,
 Without a limit on positions, results are without that field.}  # fmt: skip
 Without a limit on positions, results are without that field.dense = {**about, "settings": None, "keep": 1.0, "inputs": 0, "seed": None}
 Without a limit on positions, results are without that field.if dense not in results:
 Without a limit on positions, results are without that field.    n = count_parameters(subject.network)
 Without a limit on positions, results are without that field.    quality = subject.task.quality(subject.network)
 Without a limit on positions, results are without that field.    results.append({**dense, "quality": quality, "parameters_in": n, "parameters_out": n})
 Without a limit on positions, results are without that field.return about
