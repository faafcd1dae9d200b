"""What pruning without data costs: time, and memory beside that of the model."""

from __future__ import annotations

import threading
from collections.abc import Callable
from pathlib import Path

import torch
from networks import bert_base, resnet
from posttraining_speed import Time, time
from tabulate import tabulate
from torch import nn

from skcompress import MagnitudePruner, Pruner, count_bytes
from skcompress.protocols import Compressor

SPARSITY = 0.9


def print_speed(device: str) -> None:
    """Measure and print it, on a ResNet-50 and a BERT-base with random weights."""
    print(f"torch {torch.__version__}, {device}, {torch.get_num_threads()} threads")
    lines = []
    with torch.random.fork_rng():
        torch.manual_seed(0)
        models = {
            "ResNet-50": resnet((3, 4, 6, 3), bottleneck=True).to(device),
            "BERT-base": bert_base().to(device),
        }
    for name, model in models.items():
        for pruner in (MagnitudePruner(SPARSITY), Pruner("lamp", SPARSITY)):
            pruner.fit_transform(nn.Linear(8, 8))  # imports and the like
            taken, held = measured(pruner, model)
            share = "" if held is None else f"{held / count_bytes(model):.2f} x model"
            lines.append([name, repr(pruner), *taken.cells(), share])
    header = ["", "fit_transform", "time", "of all cores", "memory, the result included"]
    print(tabulate(lines, header, disable_numparse=True), flush=True)


def measured(pruner: Compressor, model: nn.Module) -> tuple[Time, int | None]:
    """Time of a `fit_transform`, and the most bytes that the process held beside what it had."""
    result = []
    before = resident()
    with Peak() as peak:
        taken = time(lambda: result.append(pruner.fit_transform(model)))
    return taken, None if before is None else peak.most - before


class Peak:
    """Watches the resident memory of the process, which allocations of torch show in too."""

    most = 0

    def __enter__(self) -> Peak:
        self._stop = threading.Event()
        self._thread = threading.Thread(target=self._watch)
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stop.set()
        self._thread.join()

    def _watch(self) -> None:
        read: Callable[[], int | None] = resident
        while not self._stop.wait(0.002):
            self.most = max(self.most, read() or 0)


def resident() -> int | None:
    """Bytes of memory that the process holds; None where the system does not say."""
    status = Path("/proc/self/status")
    if not status.exists():
        return None
    line = next(line for line in status.read_text().splitlines() if line.startswith("VmRSS"))
    return 1024 * int(line.split()[1])
