"""Penalties on all layers of a network: their share of a training step, and of autograd's time.

    python examples/benchmarks/penalties.py
    python examples/benchmarks/penalties.py --regularizers nuclear_norm nuclear_ratio schatten

ResNet-18 for images of 32 x 32, batches of 128, SGD with momentum. The rivals take turns, so that
a slow moment of the machine hits all of them; the median counts.

- "training step": forward, backward, optimizer; no penalty. On a CPU in float32; on a GPU with
  bfloat16 autocast and channels last.
- "autograd": `torch.linalg.matrix_norm(w, "nuc")` of every weight unfolded to a matrix, and its
  backward, as people write it.
- the others: `add_grad_` of the regularizer. "every=4" is the mean over four calls.

The error is that of the nuclear norm's gradient against U V^T in float64, relative to its norm,
the largest of all layers.
"""

from __future__ import annotations

import argparse
import statistics
from collections.abc import Callable

import torch
from networks import resnet
from tabulate import tabulate
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.utils.benchmark import Timer

from skcompress import NuclearNorm, registry
from skcompress.network.weights import select

DEFAULTS = ("nuclear_norm", "first_difference", "second_difference")


def weights(model: nn.Module) -> list[Tensor]:
    """The weights that penalties are on, as matrices (out, in * kernel), with a graph."""
    return [group.flatten(1) for site in select(model).sites for group in site.slot.read()]


def autograd(model: nn.Module) -> None:
    """What users write."""
    total = sum(torch.linalg.matrix_norm(w, "nuc") for w in weights(model))
    (1e-4 * total).backward()


def memory_format(device: str) -> torch.memory_format:
    """The layout that people train with there."""
    return torch.channels_last if device == "cuda" else torch.contiguous_format


def training_step(model: nn.Module, device: str) -> Callable[[], None]:
    """One step of plain training on a fixed batch."""
    optimizer = torch.optim.SGD(model.parameters(), 1e-3, momentum=0.9)
    images = torch.randn(128, 3, 32, 32, device=device).to(memory_format=memory_format(device))
    labels = torch.randint(10, (128,), device=device)

    def step() -> None:
        with torch.autocast(device, torch.bfloat16, enabled=device == "cuda"):
            loss = cross_entropy(model(images), labels)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()

    return step


def gradient_error(model: nn.Module) -> float:
    """Largest relative error of the nuclear norm's gradient over the layers."""
    found = [w.detach() for w in weights(model)]
    gradients = [torch.zeros_like(w) for w in found]
    NuclearNorm().add_gradients_(found, gradients, 1.0)
    worst = 0.0
    for weight, gradient in zip(found, gradients, strict=True):
        left, _, right = torch.linalg.svd(weight.double(), full_matrices=False)
        exact = left @ right
        worst = max(worst, float((gradient - exact).norm() / exact.norm()))
    return worst


def main() -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--regularizers", nargs="+", default=list(DEFAULTS))
    parser.add_argument("--repeats", type=int, default=7)
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    options = parser.parse_args()
    torch.manual_seed(0)
    model = resnet((2, 2, 2, 2), bottleneck=False, small_images=True, classes=10)
    model.to(options.device, memory_format=memory_format(options.device))
    step, nuclear = training_step(model, options.device), "autograd, nuclear norm"
    calls: dict[str, tuple[Callable[[], object], int]] = {
        "training step": (step, 1),
        nuclear: (lambda: autograd(model), 1),
    }
    for name in options.regularizers:
        every = {1, 4} if name == "nuclear_norm" else {1}
        for k in sorted(every):
            regularizer = registry.make("regularizers", name).set_params(every=k)
            label = name if k == 1 else f"{name}, every={k}"
            calls[label] = (lambda r=regularizer: r.add_grad_(model), k)

    times: dict[str, list[float]] = {label: [] for label in calls}
    timers = {label: Timer("call()", globals={"call": c}, num_threads=torch.get_num_threads())
              for label, (c, _) in calls.items()}  # fmt: skip
    for timer in timers.values():
        timer.timeit(1)  # the first call chooses layers and warms caches
    for _ in range(options.repeats):
        for label, (_, calls_per_turn) in calls.items():
            times[label].append(timers[label].timeit(calls_per_turn).mean)
    medians = {label: statistics.median(found) for label, found in times.items()}
    rows = [
        [label, f"{1e3 * t:.1f} ms", f"{t / medians['training step']:.1%}",
         f"{medians[nuclear] / t:.1f}x"]
        for label, t in medians.items()
    ]  # fmt: skip
    print(f"torch {torch.__version__}, {options.device}, {torch.get_num_threads()} threads")
    header = ["", "time", "of a step", "faster than autograd"]
    print(tabulate(rows, header, disable_numparse=True))
    print(f"\nlargest error of the nuclear norm's gradient: {gradient_error(model):.1e}")


if __name__ == "__main__":
    main()
