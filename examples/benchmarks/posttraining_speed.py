"""What compression with calibration inputs costs: where its time goes, and how it grows.

Beside wall-clock time stands the time that all cores together spent on it, which other programs on
the machine disturb less; on a CPU, shares and ratios are of that.
"""

from __future__ import annotations

from collections.abc import Callable
from time import perf_counter, process_time
from typing import Any, NamedTuple

import torch
from cifar10_networks import build
from tabulate import tabulate
from torch import Tensor, nn

from skcompress import SVDCompressor, count_parameters

KEEP = 0.3


class Time(NamedTuple):
    """Seconds: on the clock, and of all cores."""

    wall: float
    cores: float

    def __sub__(self, other: Time) -> Time:
        return Time(self.wall - other.wall, self.cores - other.cores)

    def over(self, other: Time) -> float:
        """Ratio of two times, by the steadier measure."""
        by_clock = torch.cuda.is_available()
        return self.wall / other.wall if by_clock else self.cores / other.cores

    def cells(self) -> list[str]:
        return [f"{self.wall:.2f} s", f"{self.cores:.2f} s"]


def time(call: Callable[[], object]) -> Time:
    """How long a call takes, work that it left on a GPU included."""
    started = perf_counter(), process_time()
    call()
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return Time(perf_counter() - started[0], process_time() - started[1])


def print_speed(device: str) -> None:
    """Measure and print it all, on networks with random weights and random images."""
    threads = torch.get_num_threads()
    print(f"torch {torch.__version__}, {device}, {threads} threads, {KEEP:.0%} kept")
    print("\nGrowth with the number of images, resnet20\n", flush=True)
    print_growth("images", {n: make("resnet20", n, device) for n in (256, 512, 1024, 2048)})
    print("\nGrowth with the number of layers, 512 images\n", flush=True)
    print_growth("layers", {d: make(f"resnet{d}", 512, device) for d in (20, 32, 56)})
    cases = [("resnet20", 512), ("resnet18", 512)]
    if device != "cpu":
        cases.append(("resnet18", 4096))
    for name, n_images in cases:
        network, images = make(name, n_images, device)
        n = count_parameters(network)
        print(f"\n{name}, {n:,} parameters, {len(images)} images\n", flush=True)
        header = ["", "time", "share"]
        print(tabulate(steps(network, images), header, disable_numparse=True), flush=True)


def make(name: str, n_images: int, device: str) -> tuple[nn.Module, Tensor]:
    """Give a network with random weights, and random images (n, 3, 32, 32)."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = build(name).eval().to(device)
    generator = torch.Generator().manual_seed(0)
    return network, torch.randn(n_images, 3, 32, 32, generator=generator).to(device)


def fit(network: nn.Module, images: Tensor, **settings: Any) -> Time:
    return time(lambda: SVDCompressor(KEEP, **settings).fit(network, images))


@torch.no_grad()
def steps(network: nn.Module, images: Tensor) -> list[list[str]]:
    """Name, seconds and share of the whole for each step, as the report has them."""
    compressor = SVDCompressor(KEEP)
    whole = time(lambda: compressor.fit_transform(network, images)).wall
    found = {step.name: step.seconds for step in compressor.report_.steps}
    found["transform"] = whole - sum(found.values())
    found["whole"] = whole
    found["for comparison: one forward of all images"] = time(
        lambda: [network(batch) for batch in images.split(64)]
    ).wall
    found["for comparison: fit without data"] = time(lambda: SVDCompressor(KEEP).fit(network)).wall
    return [[name, f"{t:.2f} s", f"{t / whole:.1%}"] for name, t in found.items()]


def print_growth(axis: str, cases: dict[int, tuple[nn.Module, Tensor]]) -> None:
    """Print times of whole fits, and ratios to the first: of the times, and of what grows."""
    times = {n: fit(*case) for n, case in cases.items()}
    n_0, t_0 = next(iter(times.items()))
    lines = [
        [
            str(n),
            *t.cells(),
            f"{n / n_0:.2f}x",
            f"{t.over(t_0):.2f}x",
            f"{t.over(t_0) * n_0 / n:.2f}",
        ]
        for n, t in times.items()
    ]
    header = [axis, "time", "of all cores", axis, "time", "time by " + axis]
    print(tabulate(lines, header, disable_numparse=True), flush=True)
