"""What each smoothness penalty is worth: train with it, compress, compare; in about a minute.

Trains the small convolutional network of quickstart.py on scikit-learn's digits with
`SmoothClassifier`, once as always and once with each of three penalties, and compresses all of
them with plain `SVDCompressor`: no data, no fine-tuning. The strength of a penalty is chosen on
validation images, among those that cost the uncompressed network at most one point there. Prints
a table of test accuracies, and saves a plot of the singular values.

    python examples/smooth_training.py --help
"""

from __future__ import annotations

import argparse
from pathlib import Path
from time import perf_counter

import torch
from quickstart import RANKS, Digits, accuracy, build_network, compress, load
from skorch.callbacks import LRScheduler
from tabulate import tabulate
from torch import nn
from torch.optim.lr_scheduler import OneCycleLR

from skcompress import SmoothClassifier

# Strengths to try, a factor of three or so apart.
STRENGTHS = {
    "nuclear_norm": (0.01, 0.03, 0.1),
    "first_difference": (0.01, 0.03, 0.1),
    "second_difference": (0.003, 0.01, 0.03),
}
BATCH_SIZE = 64


def train(
    digits: Digits, epochs: int, seed: int, regularizer: str | None, strength: float = 0.0
) -> nn.Module:
    """Train one network; `regularizer` is a registered name or None."""
    n_steps = epochs * -(-len(digits.train.labels) // BATCH_SIZE)
    penalty = {} if regularizer is None else {"regularizer__weight": strength}
    classifier = SmoothClassifier(
        build_network,
        regularizer,
        optimizer=torch.optim.AdamW,
        max_epochs=epochs,
        batch_size=BATCH_SIZE,
        callbacks=[LRScheduler(OneCycleLR, step_every="batch", max_lr=3e-3, total_steps=n_steps)],
        random_state=seed,
        **penalty,
    )
    return classifier.fit(digits.train.pixels, digits.train.labels).module_


def choose(digits: Digits, plain: nn.Module, epochs: int, seed: int, name: str) -> tuple:
    """Strength and network of the penalty `name` that validation images prefer.

    Of those at most one point below `plain` uncompressed, the best on the mean over RANKS.
    """
    floor = accuracy(plain, digits.validation) - 0.01
    found = []
    for strength in STRENGTHS[name]:
        network = train(digits, epochs, seed, name, strength)
        dense = accuracy(network, digits.validation)
        small = [accuracy(s, digits.validation) for s in compress(network).values()]
        mean = sum(small) / len(small)
        print(f"  {name} {strength:<6g} dense {dense:.1%}, mean over compressed {mean:.1%}")
        found.append((dense >= floor, mean, strength, network))
    return max(found, key=lambda item: item[:2])[2:]


def draw(networks: dict[str, nn.Module], path: Path) -> None:
    """Save a plot of the singular values of all layers."""
    from skcompress import SpectrumDisplay

    path.parent.mkdir(parents=True, exist_ok=True)
    SpectrumDisplay.from_models(networks).figure_.savefig(path, dpi=150)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Compare smoothness penalties on digits: table and plot.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--epochs", type=int, default=20, help="passes over the training images")
    parser.add_argument("--seed", type=int, default=0, help="of the split and of the training")
    parser.add_argument(
        "--output", type=Path, default=Path("runs/smooth_training"), help="folder for the plot"
    )
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> list[list[str]]:
    options = parse(arguments)
    started = perf_counter()
    torch.set_num_threads(1)  # so small a network gains little by more
    digits = load(options.seed)
    print("Training; validation accuracy:")
    plain = train(digits, options.epochs, options.seed, None)
    print(f"  no penalty dense {accuracy(plain, digits.validation):.1%}")
    networks, labels = {"none": plain}, ["none"]
    for name in STRENGTHS:
        strength, network = choose(digits, plain, options.epochs, options.seed, name)
        networks[name] = network
        labels.append(f"{name} {strength:g}")

    rows = []
    for label, network in zip(labels, networks.values(), strict=True):
        smaller = [accuracy(small, digits.test) for small in compress(network).values()]
        rows.append([label, *(f"{a:.1%}" for a in (accuracy(network, digits.test), *smaller))])
    header = ["penalty", "dense", *(f"{rank:.0%} kept" for rank in RANKS)]
    print("\nTest accuracy:\n")
    print(tabulate(rows, header, disable_numparse=True))
    path = options.output / "spectra.png"
    draw(networks, path)
    print(f"\nPlot: {path}. Took {perf_counter() - started:.0f} s.")
    return rows


if __name__ == "__main__":
    main()
