"""One search on the workers of a Dask cluster: here one of a few processes on this machine.

    python examples/tuning_dask.py --workers 2 --trials 20

Needs `pip install 'skcompress[dask]'`. Every worker runs the same `CompressionSearch.fit`; they
meet in the study, which Dask's scheduler keeps for them (`DaskStorage`). On a real cluster, give
the address of its scheduler with `--scheduler`; nothing else changes.
"""

from __future__ import annotations

import argparse
import logging
import warnings

import numpy as np
import optuna
import torch
from distributed import Client
from optuna.exceptions import ExperimentalWarning
from optuna_integration import DaskStorage
from sklearn.datasets import load_digits
from torch import Tensor, nn

from skcompress import CompressionSearch, SVDCompressor
from skcompress.spaces import FloatRange

STUDY = "digits"


def digits() -> tuple[Tensor, Tensor]:
    """Images of handwritten digits, (1797, 64), and what they show."""
    pixels, labels = load_digits(return_X_y=True)
    return torch.tensor(pixels / 16, dtype=torch.float32), torch.tensor(labels)


def trained(x: Tensor, labels: Tensor) -> nn.Module:
    """A multilayer perceptron, trained for a few seconds on the first 1200 images."""
    generator = torch.Generator().manual_seed(0)
    network = nn.Sequential(
        nn.Linear(64, 256), nn.ReLU(), nn.Linear(256, 256), nn.ReLU(), nn.Linear(256, 10)
    )
    for parameter in network.parameters():
        bound = parameter.shape[-1] ** -0.5
        nn.init.uniform_(parameter, -bound, bound, generator=generator)
    optimizer = torch.optim.Adam(network.parameters(), 1e-3)
    for _ in range(15):
        for batch in torch.randperm(1200, generator=generator).split(64):
            optimizer.zero_grad()
            nn.functional.cross_entropy(network(x[batch]), labels[batch]).backward()
            optimizer.step()
    return network.eval()


def work(number: int, network: nn.Module, n_trials: int) -> int:
    """Run trials on one worker until the study has enough; gives how many were its own."""
    optuna.logging.set_verbosity(optuna.logging.WARNING)
    x, labels = digits()
    own = []

    def accuracy(model: nn.Module) -> float:
        own.append(1)
        with torch.no_grad():
            return float((model(x[1200:]).argmax(1) == labels[1200:]).double().mean())

    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ExperimentalWarning)
        storage = DaskStorage(name=STUDY)  # of the cluster that this worker is in
    CompressionSearch(
        SVDCompressor(),
        {"rank": FloatRange(0.1, 0.9), "scheme": ..., "allocation": ...},
        scoring=accuracy, n_trials=n_trials, storage=storage, study_name=STUDY,
        random_state=number,
    ).fit(network)  # fmt: skip
    return len(own)


def main(arguments: list[str] | None = None) -> optuna.Study:
    parser = argparse.ArgumentParser(description=__doc__.partition("\n")[0])
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--trials", type=int, default=20, help="of all workers together")
    parser.add_argument("--scheduler", help="address of a cluster; without it, one is started here")
    given = parser.parse_args(arguments)
    # Who comes second to create the study is told by an error, which Dask would print.
    logging.getLogger("distributed.core").setLevel(logging.CRITICAL)
    network = trained(*digits())
    local = {"n_workers": given.workers, "threads_per_worker": 1, "dashboard_address": ":0"}
    with Client(given.scheduler) if given.scheduler else Client(**local) as client:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ExperimentalWarning)
            storage = DaskStorage(client=client, name=STUDY)
        # Every call of `work` is another piece of work, though the arguments look alike.
        futures = [
            client.submit(work, number, network, given.trials, pure=False)
            for number in range(given.workers)
        ]
        shares = client.gather(futures)
        study = optuna.load_study(study_name=STUDY, storage=storage)
        trials = [t for t in study.trials if t.values is not None]
    print(f"{len(trials)} trials, scored by the workers: {', '.join(map(str, shares))}")
    for trial in sorted(trials, key=lambda t: t.values[1])[:: max(1, len(trials) // 5)]:
        print(f"accuracy {trial.values[0]:.3f} with {int(trial.values[1]):,} parameters")
    assert np.isfinite([t.values for t in trials]).all()
    return study


if __name__ == "__main__":
    main()
