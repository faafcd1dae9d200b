"""How long the steps of a fit take, and how much memory."""

from __future__ import annotations

import time
from collections.abc import Iterator
from contextlib import contextmanager

import torch

from ..plan import Step


class Steps:
    """Records named steps, one after another.

    device : whose memory counts; of the CPU it is that of the process
    """

    def __init__(self, device: torch.device):
        self._device = device
        self.done: list[Step] = []

    @contextmanager
    def __call__(self, name: str) -> Iterator[None]:
        """Record what happens inside; a name that was there before adds up."""
        start = time.perf_counter()
        yield
        seconds = time.perf_counter() - start
        peak = _peak_memory(self._device)
        for n, step in enumerate(self.done):
            if step.name == name:
                self.done[n] = Step(name, step.seconds + seconds, peak)
                return
        self.done.append(Step(name, seconds, peak))


def _peak_memory(device: torch.device) -> int | None:
    """Most bytes held at a time until now; None where the system does not say."""
    if device.type == "cuda":
        return torch.cuda.max_memory_allocated(device)
    try:
        import resource
    except ImportError:  # Windows
        return None
    import sys

    # In bytes on macOS, in KiB elsewhere.
    unit = 1 if sys.platform == "darwin" else 1024
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
