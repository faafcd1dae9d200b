"""Search penalty, strength, epochs and rank together, and see what that is worth on digits.

One Optuna study trains a small convolutional network on scikit-learn's digits with
`SmoothClassifier`, compresses it with `SVDCompressor`, and looks for the trade-off between
accuracy and number of parameters: which penalty, how strong, how many epochs, which rank. Two
other studies search rank and scheme only: of a network that was trained as always, and of one with
the default penalty. Validation images choose, test images report.

    python examples/tuning.py --help

With `--storage sqlite:///runs/tuning.db` an interrupted search goes on where it was, and
`optuna-dashboard sqlite:///runs/tuning.db` shows it.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from time import perf_counter
from typing import Any

import optuna
import torch
from optuna.study import MaxTrialsCallback
from optuna.trial import FrozenTrial, TrialState
from quickstart import Digits, Images, accuracy, load
from sklearn.base import clone
from skorch.callbacks import LRScheduler
from tabulate import tabulate
from torch import nn
from torch.optim.lr_scheduler import ExponentialLR

from skcompress import SmoothClassifier, SVDCompressor, count_parameters, suggest_params
from skcompress.spaces import FloatRange, IntRange

SIZES = (0.5, 0.3, 0.2, 0.15)  # fractions of the parameters, at which the studies are compared
RANKS = FloatRange(0.1, 0.5)
PENALTY_EVERY = 4  # steps: the singular values change slowly, so this costs little accuracy
PENALTIES = ["nuclear_norm", "first_difference", "second_difference"]
Study = optuna.Study
# Of a trial: the estimator with its parameters.
Configured = Callable[[Any], Any]


def build_network() -> nn.Sequential:
    """Three convolutions and two linear layers: 40,506 parameters."""

    def convolution(inputs: int, outputs: int) -> list[nn.Module]:
        conv = nn.Conv2d(inputs, outputs, 3, padding=1, bias=False)
        return [conv, nn.BatchNorm2d(outputs), nn.ReLU()]

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


def classifier(regularizer: str | None, epochs: int, seed: int) -> SmoothClassifier:
    return SmoothClassifier(
        build_network,
        regularizer,
        lr=3e-3,
        max_epochs=epochs,
        batch_size=64,
        random_state=seed,
        callbacks=[LRScheduler(ExponentialLR, gamma=0.8)],
        **({} if regularizer is None else {"regularizer__every": PENALTY_EVERY}),
    )


# --- what a trial does -----------------------------------------------------------------


def joint(epochs: int, seed: int, train: Images) -> Configured:
    """Training and compression, configured by one trial; gives the compressed network."""
    estimator = classifier("nuclear_norm", epochs, seed).set_params(compressor=SVDCompressor())

    def configured(trial: Any) -> nn.Module:
        parameters = suggest_params(
            trial,
            estimator,
            only=["regularizer", "regularizer.*.weight", "max_epochs", "compressor__rank"],
            override={
                "regularizer": PENALTIES,
                "max_epochs": IntRange(max(1, epochs // 2), epochs),
                "compressor__rank": RANKS,
            },
        )
        network = clone(estimator).set_params(**parameters)
        return network.fit(train.pixels, train.labels).module_

    return configured


def compression(network: nn.Module) -> Configured:
    """Compression of a trained network; with warm_start the trials share its factorisations."""
    compressor = SVDCompressor(warm_start=True)

    def configured(trial: Any) -> nn.Module:
        chosen = {"only": ["rank", "scheme"], "override": {"rank": RANKS}}
        parameters = suggest_params(trial, compressor, **chosen)
        return compressor.set_params(**parameters).fit_transform(network)

    return configured


def search(
    name: str, configured: Configured, validation: Images, n_trials: int, options: Any
) -> Study:
    """Look for the trade-off of validation accuracy and parameters, in n_trials in all."""
    study = optuna.create_study(
        directions=["maximize", "minimize"],
        study_name=name,
        storage=options.storage,
        load_if_exists=True,
        sampler=optuna.samplers.TPESampler(seed=options.seed),
    )

    def objective(trial: optuna.Trial) -> tuple[float, int]:
        network = configured(trial)
        return accuracy(network, validation), count_parameters(network)

    done = MaxTrialsCallback(n_trials, states=(TrialState.COMPLETE,))
    n_left = n_trials - len(study.get_trials(states=(TrialState.COMPLETE,)))
    if n_left > 0:
        study.optimize(objective, callbacks=[done])
    return study


def best_within(study: Study, n_parameters: float) -> FrozenTrial | None:
    """Trial of the highest validation accuracy among those that are small enough."""
    finished = study.get_trials(states=(TrialState.COMPLETE,))
    fitting = [trial for trial in finished if trial.values[1] <= n_parameters]
    return max(fitting, key=lambda trial: (trial.values[0], -trial.values[1]), default=None)


# --- the comparison --------------------------------------------------------------------


def compare(digits: Digits, options: argparse.Namespace) -> list[list[str]]:
    """Test accuracy of each way at each of SIZES, chosen by validation images."""
    epochs, seed = options.epochs, options.seed
    n_dense = count_parameters(build_network())
    ways: dict[str, Configured] = {}
    for label, regularizer in (("no penalty", None), ("default penalty", "nuclear_norm")):
        trained = classifier(regularizer, epochs, seed)
        trained.fit(digits.train.pixels, digits.train.labels)
        ways[f"{label}, search compression"] = compression(trained.module_)
        print(f"{label}: dense {accuracy(trained.module_, digits.test):.1%}")
    ways["search everything"] = joint(epochs, seed, digits.train)

    rows = []
    for label, configured in ways.items():
        started = perf_counter()
        study = search(label, configured, digits.validation, options.trials, options)
        row = [label, f"{perf_counter() - started:.0f} s"]
        for size in SIZES:
            trial = best_within(study, size * n_dense)
            # A finished trial gives the parameters that it had: the same network again.
            row.append("-" if trial is None else f"{accuracy(configured(trial), digits.test):.1%}")
        rows.append(row)
    print("\nWhat the validation images chose, among all penalties, strengths, epochs and ranks:\n")
    chosen = {size: best_within(study, size * n_dense) for size in SIZES}
    for size, trial in chosen.items():
        if trial is not None:
            listed = ", ".join(f"{name} {_short(value)}" for name, value in trial.params.items())
            print(f"  {size:.0%}: {listed}")
    return rows


def _short(value: Any) -> str:
    return f"{value:.3g}" if isinstance(value, float) else str(value)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description="Search training and compression together: a table on digits.",
        formatter_class=argparse.ArgumentDefaultsHelpFormatter,
    )
    parser.add_argument("--trials", type=int, default=40, help="of each study, in all")
    parser.add_argument("--epochs", type=int, default=12, help="passes over the training images")
    parser.add_argument("--seed", type=int, default=0, help="of the split, training and search")
    parser.add_argument("--storage", help="such as sqlite:///tuning.db; in memory without")
    return parser.parse_args(arguments)


def main(arguments: list[str] | None = None) -> list[list[str]]:
    options = parse(arguments)
    started = perf_counter()
    torch.set_num_threads(1)  # so small a network gains little by more
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    rows = compare(load(options.seed), options)
    header = ["", "search", *(f"{size:.0%} kept" for size in SIZES)]
    print("\nTest accuracy:\n")
    print(tabulate(rows, header, disable_numparse=True))
    print(f"\nTook {perf_counter() - started:.0f} s.")
    return rows


if __name__ == "__main__":
    main()
