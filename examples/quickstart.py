"""Make a network three to ten times smaller without fine-tuning it, in half a minute.

Trains a small convolutional network on scikit-learn's handwritten digits (1,797 grey images
of 8 x 8 pixels, part of scikit-learn, nothing to download), compresses it to several sizes
with `SVDCompressor`, and prints what that does to size, arithmetic, accuracy and speed. Then
does the same with a network that was trained with one more term in the loss, the nuclear
norm: such "smooth" weights lose less.

    python examples/quickstart.py --help
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from time import perf_counter
from typing import Any, NamedTuple

import torch
from sklearn.datasets import load_digits
from sklearn.model_selection import train_test_split
from tabulate import SEPARATING_LINE, tabulate
from torch import Tensor, nn
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import OneCycleLR

from skcompress import NuclearNorm, SVDCompressor
from skcompress.metrics import count_flops, count_parameters, measure_latency

RANKS = (0.7, 0.5, 0.3, 0.2, 0.1, 0.05)  # fractions of the parameters to keep
STRENGTHS = (0.01, 0.03, 0.1)  # of the nuclear norm; the validation images choose one
PENALTY_EVERY = 4  # steps: the singular values change slowly, so this costs little accuracy
BATCH_SIZE = 64
LATENCY_BATCH_SIZE = 256
LATENCY_ROUNDS = 8  # of all networks in turn, the best counts: a busy moment spoils one round


class Images(NamedTuple):
    """Images (n, 1, 8, 8) with pixels in [0, 1], and labels (n,) from 0 to 9."""

    pixels: Tensor
    labels: Tensor


class Digits(NamedTuple):
    """60 % to train on, 15 % to choose settings by, 25 % to report."""

    train: Images
    validation: Images
    test: Images


def load(seed: int) -> Digits:
    """Split scikit-learn's digits, every digit in the same proportion everywhere."""
    pixels, labels = load_digits(return_X_y=True)
    pixels = pixels.reshape(-1, 1, 8, 8).astype("float32") / 16
    rest, test, rest_y, test_y = train_test_split(
        pixels, labels, test_size=0.25, stratify=labels, random_state=seed
    )
    train, valid, train_y, valid_y = train_test_split(
        rest, rest_y, test_size=0.2, stratify=rest_y, random_state=seed
    )
    parts = ((train, train_y), (valid, valid_y), (test, test_y))
    return Digits(*(Images(torch.tensor(x), torch.tensor(y)) for x, y in parts))


def build_network() -> nn.Sequential:
    """Three convolutions and two linear layers: 159,850 parameters."""

    def convolution(inputs: int, outputs: int) -> list[nn.Module]:
        conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        return [conv, nn.BatchNorm2d(outputs), nn.ReLU()]

    return nn.Sequential(
        *convolution(1, 32),
        *convolution(32, 64),
        nn.MaxPool2d(2),
        *convolution(64, 128),
        nn.MaxPool2d(2),
        nn.Flatten(),
        nn.Linear(128 * 2 * 2, 128),
        nn.ReLU(),
        nn.Linear(128, 10),
    )


def train(images: Images, epochs: int, seed: int, smoothness: float = 0.0) -> nn.Sequential:
    """Train a new network; `smoothness` is the strength of the nuclear norm in the loss."""
    with torch.random.fork_rng():  # initial weights are drawn from torch's global state
        torch.manual_seed(seed)
        network = build_network()
    shuffle = torch.Generator().manual_seed(seed)
    n_steps = epochs * -(-len(images.labels) // BATCH_SIZE)
    optimizer = torch.optim.AdamW(network.parameters())
    schedule = OneCycleLR(optimizer, max_lr=3e-3, total_steps=n_steps)
    penalty = NuclearNorm(weight=smoothness * PENALTY_EVERY)

    step = 0
    for _ in range(epochs):
        for batch in torch.randperm(len(images.labels), generator=shuffle).split(BATCH_SIZE):
            loss = cross_entropy(network(images.pixels[batch]), images.labels[batch])
            if smoothness and step % PENALTY_EVERY == 0:
                loss = loss + penalty(network)  # this line is all there is to it
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            schedule.step()
            step += 1
    return network.eval()


@torch.no_grad()
def accuracy(network: nn.Module, images: Images) -> float:
    """Fraction of images whose label is recognised."""
    return float((network(images.pixels).argmax(1) == images.labels).float().mean())


def compress(network: nn.Module) -> dict[float, nn.Module]:
    """Compressed copies of `network`, by `rank`."""
    # warm_start keeps the singular value decompositions from one rank to the next.
    compressor = SVDCompressor(warm_start=True)
    return {rank: compressor.set_params(rank=rank).fit_transform(network) for rank in RANKS}


def train_smooth(digits: Digits, plain: nn.Module, epochs: int, seed: int) -> nn.Module:
    """Train with each of STRENGTHS and keep the network that compresses best.

    Only validation images take part in the choice: among the networks that are, uncompressed,
    within one point of `plain`, the one with the highest mean accuracy over RANKS.
    """
    floor = accuracy(plain, digits.validation) - 0.01
    found = []
    for strength in STRENGTHS:
        network = train(digits.train, epochs, seed, strength)
        dense = accuracy(network, digits.validation)
        small = [accuracy(s, digits.validation) for s in compress(network).values()]
        mean = sum(small) / len(small)
        found.append((dense >= floor, mean, strength, network))
        print(f"  strength {strength:<4g}  dense {dense:.1%}, mean over compressed {mean:.1%}")
    _, _, strength, network = max(found, key=lambda item: item[:2])
    print(f"  chosen: {strength:g}")
    return network


def measure(
    networks: list[tuple[str, float | None, nn.Module]], test: Images
) -> list[dict[str, Any]]:
    """One row of the table per network, given as (training, rank or None, network)."""
    rows = [
        {
            "training": training,
            "rank": rank,
            "parameters": count_parameters(network),
            "flops": count_flops(network, test.pixels[:1]),
            "accuracy": accuracy(network, test),
            "seconds": float("inf"),
        }
        for training, rank, network in networks
    ]
    batch = test.pixels[:LATENCY_BATCH_SIZE]
    for _ in range(LATENCY_ROUNDS):
        for row, (_, _, network) in zip(rows, networks, strict=True):
            seconds = measure_latency(network, (batch,), min_run_time=0.1)
            row["seconds"] = min(row["seconds"], seconds)
    return rows


def table(rows: list[dict[str, Any]]) -> str:
    """Every row beside the first one, which is the network as anybody would train it."""
    first = rows[0]
    cells = [
        (
            row["training"],
            "dense" if row["rank"] is None else f"rank={row['rank']:g}",
            f"{row['parameters']:,}",
            f"{row['parameters'] / first['parameters']:.1%}",
            f"{row['flops'] / 1e6:.2f}",
            f"{row['accuracy']:.1%}",
            f"{row['seconds'] * 1e3:.1f}",
            f"{first['seconds'] / row['seconds']:.2f} x",
        )
        for row in rows
    ]
    split = next(i for i, row in enumerate(rows) if row["training"] != first["training"])
    cells.insert(split, SEPARATING_LINE)
    headers = ("training", "network", "parameters", "kept", "MFLOPs\nper image", "test\naccuracy",
               "ms per\nbatch", "speed-up")  # fmt: skip
    align = ("left", "left", *["right"] * (len(headers) - 2))
    return tabulate(cells, headers, colalign=align, disable_numparse=True)


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Save a plot of test accuracy against the share of parameters kept."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(7, 4.4), layout="constrained")
    axes = figure.subplots()
    dense = rows[0]["parameters"]
    styles = {
        "plain": ("o", "tab:orange", "trained as always"),
        "smooth": ("s", "tab:blue", "trained with the nuclear norm"),
    }
    for training, (marker, colour, label) in styles.items():
        own = [row for row in rows if row["training"] == training]
        axes.plot(
            [100 * row["parameters"] / dense for row in own],
            [100 * row["accuracy"] for row in own],
            marker=marker,
            color=colour,
            label=label,
        )
    axes.axhline(10, color="grey", linestyle=":", label="guessing")
    ticks = [100, *(100 * rank for rank in RANKS)]
    axes.set_xscale("log")
    axes.set_xticks(ticks, [f"{tick:g} %" for tick in ticks])
    axes.minorticks_off()
    axes.set_xlim(110, 4.5)  # the further right, the smaller
    axes.set_ylim(0, 103)
    axes.set_xlabel("share of parameters kept (log scale)")
    axes.set_ylabel("test accuracy (%)")
    axes.set_title("A convolutional network on digits: truncated SVD, no fine-tuning")
    axes.grid(alpha=0.3)
    axes.legend(loc="center left")
    path.parent.mkdir(parents=True, exist_ok=True)
    figure.savefig(path, dpi=150)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Train on digits, compress without fine-tuning, print a table, save a plot.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--epochs", type=int, default=20, help="passes over the training images")
    parser.add_argument("--seed", type=int, default=0, help="of the split and of the training")
    parser.add_argument(
        "--output", type=Path, default=Path("runs/quickstart"), help="folder for the plot"
    )
    parser.add_argument(
        "--threads", type=int, default=1, help="of torch; so small a network gains little by more"
    )
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> list[dict[str, Any]]:
    options = parse(arguments)
    started = perf_counter()
    torch.set_num_threads(options.threads)
    digits = load(options.seed)
    sizes = ", ".join(f"{len(images.labels)} {name}" for name, images in digits._asdict().items())
    print(f"Digits: {sizes} images.")

    print("Training as always ...")
    plain = train(digits.train, options.epochs, options.seed)
    print("Training with the nuclear norm; validation accuracy:")
    smooth = train_smooth(digits, plain, options.epochs, options.seed)

    print("Compressing and measuring, one network after another ...\n")
    networks: list[tuple[str, float | None, nn.Module]] = []
    for training, network in (("plain", plain), ("smooth", smooth)):
        networks.append((training, None, network))
        networks.extend((training, rank, small) for rank, small in compress(network).items())
    rows = measure(networks, digits.test)
    print(table(rows))
    print(
        f"\nNo network was fine-tuned. Latency: batches of {LATENCY_BATCH_SIZE} images, best median"
        f"\nof {LATENCY_ROUNDS} rounds, 32-bit floats,"
        f" {options.threads} of {os.cpu_count()} CPU cores."
    )
    path = options.output / "accuracy.png"
    draw(rows, path)
    print(f"\nPlot: {path}. Took {perf_counter() - started:.0f} s.")
    return rows


if __name__ == "__main__":
    main()
