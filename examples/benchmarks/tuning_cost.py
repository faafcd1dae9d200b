"""What a trial of a search costs, and how much less than a fit from scratch."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from time import perf_counter, process_time
from typing import Any

import torch
from networks import NETWORKS
from posttraining_speed import Time, make
from torch import Tensor, nn

from skcompress import CompressionSearch, SVDCompressor, count_parameters
from skcompress.spaces import FloatRange

# Every layer for itself: a sequential reconstruction depends on the ranks of all layers before.
# Nor is a network run that was just built, neither for its report nor for its batch normalisations.
INDEPENDENT: dict[str, Any] = {
    "reconstruction": "independent",
    "recalibrate_norm": False,
    "measure": False,
}
RANK = FloatRange(0.3, 0.9)


def now() -> Time:
    """Seconds until now, on the clock and of all cores, which other programs disturb less."""
    return Time(perf_counter(), process_time())


def print_cost(
    names: Sequence[str], device: str, n_images: int, n_trials: int = 20, n_fits: int = 3
) -> None:
    """Set trials of a search over ranks against fits from scratch, with images and without."""
    print(f"torch {torch.__version__}, {device}, {torch.get_num_threads()} threads", flush=True)
    for name in names:
        network, images = make(name, n_images, device)
        for data in (images, None):
            settings = INDEPENDENT if data is not None else {}
            fresh, first, later = cost(network, data, settings, n_trials, n_fits)
            what = "no data" if data is None else f"{n_images} images"
            print(
                f"{name}, {what}: fit_transform {fresh:.3f} s; first trial {first:.3f} s, later "
                f"ones {later:.3f} s, cheaper by {fresh / later:.0f}x",
                flush=True,
            )


def cost(
    network: nn.Module, data: Tensor | None, settings: dict[str, Any], n_trials: int, n_fits: int
) -> tuple[float, float, float]:
    """Median seconds of a whole fit and transform; of the first trial; median of the others."""
    fresh = []
    for number in range(n_fits):
        compressor = SVDCompressor(0.4 + 0.1 * number, **settings)
        started = perf_counter()
        compressor.fit_transform(network, data)
        fresh.append(perf_counter() - started)
    search = CompressionSearch(
        SVDCompressor(**settings), {"rank": RANK}, scoring=None, objectives="n_parameters",
        n_trials=n_trials, random_state=0, sampler="random",
    ).fit(network, data)  # fmt: skip
    first, *later = (t.user_attrs["seconds_compressing"] for t in search.study_.trials)
    return median(fresh), first, median(later)


def print_many(device: str, name: str = "resnet18", n_trials: int = 200, size: int = 64) -> None:
    """Time a search of rank and allocation without data, apart from the scoring."""
    with torch.random.fork_rng():
        torch.manual_seed(0)
        network = NETWORKS[name]().eval().to(device)
    generator = torch.Generator().manual_seed(0)
    images = torch.randn(4, 3, size, size, generator=generator).to(device)
    with torch.no_grad():
        outputs = network(images)
    scoring = Time(0.0, 0.0)

    def closeness(small: nn.Module) -> float:
        nonlocal scoring
        started = now()
        with torch.no_grad():
            score = -float((small(images) - outputs).square().mean())
        scoring = Time(*map(sum, zip(scoring, now() - started, strict=True)))
        return score

    started = now()
    search = CompressionSearch(
        SVDCompressor(), {"rank": RANK, "allocation": ...}, scoring=closeness,
        n_trials=n_trials, random_state=0, verbose=1,
    ).fit(network)  # fmt: skip
    rest = now() - started - scoring
    print(
        f"{name}, {count_parameters(network):,} parameters: {len(search.trials_)} trials in "
        f"{rest.wall:.1f} s ({rest.cores:.1f} s of all cores), apart from {scoring.wall:.1f} s "
        f"({scoring.cores:.1f} s) of scoring; {len(search.pareto_front_)} on the front",
        flush=True,
    )
