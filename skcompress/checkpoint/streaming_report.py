"""How long compressing a checkpoint takes, and what came of it."""

from __future__ import annotations

import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from math import prod
from pathlib import Path
from typing import Any

import torch

from ..plan import Report, Step
from ..protocols import Decomposition
from .streaming_layers import Group
from .streaming_plan import Work

# Side of the matrix that is decomposed to learn how fast the machine is.
_TRIAL = 512
_GB = 1e9
_MIB = 2**20


@dataclass(frozen=True)
class Estimate:
    """What lies ahead.

    seconds : roughly, by a decomposition of a small matrix; memory : bytes above those of
    the process as it is
    """

    seconds: float
    memory: int
    n_bytes: int
    n_weights: int

    def __str__(self) -> str:
        return (
            f"{self.n_weights} weights in {self.n_bytes / _GB:,.2f} GB: about "
            f"{_duration(self.seconds)} and {self.memory / _MIB:,.0f} MiB of memory"
        )


def estimated(work: Work, groups: Sequence[Group], n_bytes: int) -> Estimate:
    """Say how long two passes over all weights take, and how much memory the largest needs."""
    speed: dict[str, float] = {}
    seconds, largest = 0.0, 0
    for group in groups:
        for site in group.sites:
            n_groups, out, *rest = site.slot.shape
            rows, columns = sorted((out, prod(rest)))
            for decomposition in work.competing(site):
                if decomposition.scheme not in speed:
                    speed[decomposition.scheme] = _speed(decomposition, len(rest))
                load = n_groups * rows * rows * columns
                seconds += 2 * load * speed[decomposition.scheme]
            # The weight and a factor in float32, and an eigenproblem in float64.
            largest = max(largest, 8 * n_groups * rows * columns + 40 * rows * rows)
    return Estimate(seconds, largest, n_bytes, sum(len(group.sites) for group in groups))


def _speed(decomposition: Decomposition, n_axes: int) -> float:
    """Seconds for each of the m^2 n operations that a matrix (m, n) takes."""
    generator = torch.Generator().manual_seed(0)
    kernel = (1,) * (n_axes - 1)
    if decomposition.unsupported((_TRIAL, _TRIAL, *kernel)) is not None:
        kernel = (3,) * (n_axes - 1)
    side = int(_TRIAL / prod(kernel) ** 0.5)
    weight = torch.randn(side, side, *kernel, generator=generator)
    seconds = []
    for _ in range(3):  # the first loads libraries, which may take longer than all the rest
        start = time.perf_counter()
        decomposition.factorize(weight)
        seconds.append(time.perf_counter() - start)
    return min(seconds) / (side**3 * prod(kernel))


def _duration(seconds: float) -> str:
    if seconds < 90:
        return f"{seconds:.0f} s"
    return f"{seconds / 60:.0f} min" if seconds < 5400 else f"{seconds / 3600:.1f} h"


@dataclass(frozen=True)
class CheckpointReport:
    """What became of a checkpoint: `print` it.

    layers : the plan as a table
    n_bytes : of the values, before and after
    steps : what this run did; resumed : whether an earlier one had begun it
    copied : tensors that the network does not have under these names, taken over as they are
    """

    destination: Path
    layers: Report
    n_bytes: tuple[int, int]
    steps: tuple[Step, ...]
    resumed: bool = False
    copied: tuple[str, ...] = ()

    @property
    def seconds(self) -> float:
        """Of this run."""
        return sum(step.seconds for step in self.steps)

    @property
    def seconds_per_gb(self) -> float:
        """Of this run, by the size of the source."""
        return self.seconds / (self.n_bytes[0] / _GB)

    @property
    def peak(self) -> int | None:
        """Most bytes that the process, or the GPU, held at a time; None where unknown."""
        return max((step.peak for step in self.steps if step.peak is not None), default=None)

    def to_dict(self) -> dict[str, Any]:
        """Give plain values, ready for JSON."""
        return {
            "destination": str(self.destination),
            **self.layers.plan.to_dict(),
            "n_parameters": [self.layers.n_parameters_in, self.layers.n_parameters_out],
            "n_bytes": list(self.n_bytes),
            "steps": [asdict(step) for step in self.steps],
            "seconds_per_gb": self.seconds_per_gb,
            "peak": self.peak,
            "resumed": self.resumed,
            "copied": list(self.copied),
        }

    def __str__(self) -> str:
        before, after = (n / _GB for n in self.n_bytes)
        peak = "" if self.peak is None else f", peak {self.peak / _MIB:,.0f} MiB"
        lines = [
            str(self.layers),
            f"{before:,.3f} -> {after:,.3f} GB in {_duration(self.seconds)} "
            f"({self.seconds_per_gb:,.1f} s per GB{peak})"
            + ("; continued an earlier run" if self.resumed else ""),
        ]
        if self.copied:
            lines.append(
                f"{len(self.copied)} tensors of other names than the network's are taken over "
                f"as they are: {', '.join(self.copied[:3])}" + ", ..." * (len(self.copied) > 3)
            )
        return "\n".join(lines)
