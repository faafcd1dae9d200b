"""Search penalty, strength, epochs and rank together, and see what that is worth on digits.

One `CompressionSearch` trains a small convolutional network on scikit-learn's digits in each trial,
with `SmoothClassifier`, compresses it with `SVDCompressor`, and looks for the trade-off between
accuracy and number of parameters: which penalty, how strong, how many epochs, which rank. Two
others search rank and scheme only: of a network that was trained as always, and of one with the
default penalty. Validation images choose, test images report.

    python examples/tuning.py --help

With `--storage sqlite:///runs/tuning.db` an interrupted search goes on where it was, and
`optuna-dashboard sqlite:///runs/tuning.db` shows it.
"""

from __future__ import annotations

import argparse
from functools import partial
from time import perf_counter
from typing import Any

import torch
from optuna.storages import InMemoryStorage
from quickstart import Digits, Images, accuracy, load
from skorch.callbacks import LRScheduler
from tabulate import tabulate
from torch import nn
from torch.optim.lr_scheduler import ExponentialLR

from skcompress import CompressionSearch, SmoothClassifier, SVDCompressor, count_parameters
from skcompress.spaces import FloatRange

SIZES = (0.5, 0.3, 0.2, 0.15)  # fractions of the parameters, at which the studies are compared
RANKS = FloatRange(0.1, 0.5)
PENALTY_EVERY = 4  # steps: the singular values change slowly, so this costs little accuracy
PENALTIES = ["nuclear_norm", "first_difference", "second_difference"]
# Steps rather than a range: what was trained once with one of them is met again by other ranks.
WEIGHTS = [1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1]


def build_network(seed: int) -> nn.Sequential:
    """Three convolutions and two linear layers, not trained: 40,506 parameters."""

    def convolution(inputs: int, outputs: int) -> list[nn.Module]:
        conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        return [conv, nn.BatchNorm2d(outputs), nn.ReLU()]

    with torch.random.fork_rng():  # initial weights are drawn from torch's global state
        torch.manual_seed(seed)
        return nn.Sequential(
            *convolution(1, 16),
            nn.MaxPool2d(2),
            *convolution(16, 32),
            nn.MaxPool2d(2),
            *convolution(32, 64),
            nn.Flatten(),
            nn.Linear(64 * 2 * 2, 64),
            nn.ReLU(),
            nn.Linear(64, 10),
        )


def classifier(regularizer: str | None, epochs: int, seed: int, **parameters: Any) -> Any:
    every = {} if regularizer is None else {"regularizer__every": PENALTY_EVERY}
    return SmoothClassifier(
        regularizer=regularizer,
        lr=3e-3,
        max_epochs=epochs,
        batch_size=64,
        random_state=seed,
        callbacks=[LRScheduler(ExponentialLR, gamma=0.8)],
        **every,
        **parameters,
    )


def search(name: str, estimator: Any, space: Any, digits: Digits, options: Any) -> Any:
    """A search for the trade-off of validation accuracy and parameters, not begun."""
    return CompressionSearch(
        estimator,
        space,
        scoring=partial(accuracy, images=digits.validation),
        n_trials=options.trials,
        storage=options.storage or InMemoryStorage(),
        study_name=name,
        random_state=options.seed,
    )


def best_within(front: Any, n_parameters: float) -> int | None:
    """Index of the highest validation accuracy among the trials that are small enough."""
    fitting = (i for i, row in enumerate(front) if row.found.n_parameters <= n_parameters)
    return next(fitting, None)  # the front begins with the most accurate


def at_each_size(search: Any, model: nn.Module, data: Any, test: Images) -> list[str]:
    """Test accuracy of what the search chose at each of SIZES."""
    found = []
    for size in SIZES:
        choose = partial(best_within, n_parameters=size * count_parameters(model))
        if choose(search.pareto_front_) is None:
            found.append("-")
            continue
        # All trials are there: this only builds the network that is asked for.
        small = search.set_params(refit=choose).fit_transform(model, data)
        found.append(f"{accuracy(small.eval(), test):.1%}")
    return found


# --- the comparison --------------------------------------------------------------------


def compare(digits: Digits, options: argparse.Namespace) -> list[list[str]]:
    """Test accuracy of each way at each of SIZES, chosen by validation images."""
    epochs, seed = options.epochs, options.seed
    train, untrained = (digits.train.pixels, digits.train.labels), build_network(seed)
    ways: dict[str, Any] = {}
    for label, regularizer in (("no penalty", None), ("default penalty", "nuclear_norm")):
        network = classifier(regularizer, epochs, seed, module=untrained).fit(*train).module_
        space = {"rank": RANKS, "scheme": ...}
        ways[f"{label}, search compression"] = (SVDCompressor(), space, network, None)
        print(f"{label}: dense {accuracy(network, digits.test):.1%}")
    space = {
        "regularizer": PENALTIES,
        "regularizer.*.weight": WEIGHTS,
        "max_epochs": [max(1, epochs // 2), epochs],
        "compressor__rank": RANKS,
        "compressor__scheme": ...,
    }
    smooth = classifier("nuclear_norm", epochs, seed, compressor=SVDCompressor())
    ways["search everything"] = (smooth, space, untrained, train)

    rows = []
    for label, (estimator, space, model, data) in ways.items():
        started = perf_counter()
        found = search(label, estimator, space, digits, options).fit(model, data)
        seconds = f"{perf_counter() - started:.0f} s"
        rows.append([label, seconds, *at_each_size(found, model, data, digits.test)])
    print("\nWhat the validation images chose, among all penalties, strengths, epochs and ranks:\n")
    for size in SIZES:
        index = best_within(found.pareto_front_, size * count_parameters(untrained))
        if index is not None:
            params = found.pareto_front_[index].params
            listed = ", ".join(f"{name} {_short(value)}" for name, value in params.items())
            print(f"  {size:.0%}: {listed}")
    return rows


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Search training and compression together: a table on digits.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--trials", type=int, default=300, help="of each study, in all")
    parser.add_argument("--epochs", type=int, default=12, help="passes over the training images")
    parser.add_argument("--seed", type=int, default=0, help="of the split, training and search")
    parser.add_argument("--storage", help="such as sqlite:///tuning.db; in memory without")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> list[list[str]]:
    options = parse(arguments)
    started = perf_counter()
    torch.set_num_threads(1)  # so small a network gains little by more
    rows = compare(load(options.seed), options)
    header = ["", "search", *(f"{size:.0%} kept" for size in SIZES)]
    print("\nTest accuracy:\n")
    print(tabulate(rows, header, disable_numparse=True))
    print(f"\nTook {perf_counter() - started:.0f} s.")
    return rows


if __name__ == "__main__":
    main()
