"""Train a ResNet on CIFAR-10 with or without a smoothness penalty, then compress it by SVD.

    python examples/benchmarks/cifar10.py --data DIR --regularizer nuclear_norm --weight 3e-3
    python examples/benchmarks/cifar10.py --data DIR --init resnet20.npz --epochs 4 --lr 0.01

The recipe is one for all penalties, and the same seed gives the same batches: random crops and
flips, SGD with Nesterov momentum, a one-cycle schedule. A part of the training images is kept
apart to choose penalties and their weights by; test images are only reported. After every epoch
the state is saved: the same command again goes on where it was interrupted. The trained weights
and results.json lie in `--output`/`--name`. Compression is plain `SVDCompressor`: no data, no
fine-tuning. `--table` prints what all runs under `--output` found.
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from time import perf_counter
from typing import Any

import torch
from cifar10_data import Images, augment, load, normalise
from cifar10_networks import build, load_weights
from safetensors.torch import save_file
from tabulate import tabulate
from torch import nn
from torch.nn.functional import cross_entropy
from torch.optim.lr_scheduler import OneCycleLR
from tqdm import tqdm

from skcompress import SVDCompressor, count_parameters, registry
from skcompress.protocols import Regularizer

RANKS = (0.5, 0.3, 0.2, 0.1)  # of the parameters kept


class Run:
    """One training: settings, network, optimizer, and a folder that it can be resumed from."""

    def __init__(self, options: argparse.Namespace, train: Images):
        self.options, self.train = options, train
        with torch.random.fork_rng():  # initial weights are drawn from torch's global state
            torch.manual_seed(options.seed)
            self.network = build(options.model)
        if options.init is not None:
            load_weights(self.network, options.init)
        self.network.to(options.device, memory_format=torch.channels_last)
        self.steps = len(train.labels) // options.batch_size  # per epoch; a last short one is left
        self.optimizer = torch.optim.SGD(
            self.network.parameters(), options.lr, momentum=0.9, nesterov=True,
            weight_decay=options.weight_decay,
        )  # fmt: skip
        self.schedule = OneCycleLR(
            self.optimizer, options.lr, options.epochs * self.steps, pct_start=options.warmup,
            div_factor=10, cycle_momentum=False,
        )  # fmt: skip
        self.generator = torch.Generator().manual_seed(options.seed)
        self.regularizer = penalty(options)
        self.history: list[dict[str, float]] = []
        self.folder = options.output / options.name

    def epoch(self) -> None:
        """Pass over the training images once and add a row to `history`."""
        self.network.train()
        started, losses = perf_counter(), torch.zeros((), device=self.options.device)
        order = torch.randperm(len(self.train.labels), generator=self.generator)
        batches = order.to(self.options.device).split(self.options.batch_size)[: self.steps]
        for batch in tqdm(batches, desc=f"epoch {len(self.history) + 1}", leave=False):
            images = self.train.part(batch)
            pixels = normalise(augment(images.pixels, self.generator))
            with torch.autocast(
                self.options.device, torch.bfloat16, enabled=self.options.precision == "bfloat16"
            ):
                loss = cross_entropy(
                    self.network(pixels.contiguous(memory_format=torch.channels_last)),
                    images.labels,
                    label_smoothing=self.options.label_smoothing,
                )
            self.optimizer.zero_grad()
            loss.backward()
            if self.regularizer is not None:
                self.regularizer.add_grad_(self.network)  # this line is all there is to it
            self.optimizer.step()
            self.schedule.step()
            losses += loss.detach()  # read once an epoch: a GPU is not to wait for it
        row = {"loss": float(losses) / self.steps, "seconds": perf_counter() - started}
        self.history.append(row)

    def save(self) -> None:
        """Write all that `resume` needs; a crash while writing leaves the older file."""
        self.folder.mkdir(parents=True, exist_ok=True)
        state = {name: getattr(self, name).state_dict() for name in _STATEFUL}
        state |= {"history": self.history, "generator": self.generator.get_state()}
        torch.save(state, self.folder / "state.tmp")
        (self.folder / "state.tmp").replace(self.folder / "state.pt")

    def resume(self) -> None:
        """Go back to where the last complete epoch ended, if there is one."""
        path = self.folder / "state.pt"
        if path.exists():
            state = torch.load(path, weights_only=True)
            for name in _STATEFUL:
                getattr(self, name).load_state_dict(state[name])
            self.history = state["history"]
            self.generator.set_state(state["generator"])


_STATEFUL = ("network", "optimizer", "schedule")


def penalty(options: argparse.Namespace) -> Regularizer | None:
    """Make the regularizer that the command line names."""
    if options.regularizer == "none":
        return None
    regularizer = registry.make("regularizers", options.regularizer)
    scheme = {"scheme": options.scheme} if options.scheme else {}
    return regularizer.set_params(weight=options.weight, every=options.every, **scheme)


@torch.no_grad()
def accuracy(network: nn.Module, images: Images) -> float:
    """Per cent of images recognised, in 32-bit floats."""
    network.eval()
    right = 0
    for pixels, labels in zip(images.pixels.split(500), images.labels.split(500), strict=True):
        right += int((network(normalise(pixels)).argmax(1) == labels).sum())
    return 100 * right / len(images.labels)


def evaluate(network: nn.Module, parts: dict[str, Images]) -> list[dict[str, float]]:
    """Accuracy, dense and compressed, on each of `parts`."""
    rows = [{"rank": 1.0, "parameters": count_parameters(network)}]
    networks = [network]
    compressor = SVDCompressor(warm_start=True)
    for rank in RANKS:
        networks.append(compressor.set_params(rank=rank).fit_transform(network))
        rows.append({"rank": rank, "parameters": compressor.n_parameters_out_})
    for row, small in zip(rows, networks, strict=True):
        row |= {name: accuracy(small, images) for name, images in parts.items()}
    return rows


def table(output: Path) -> str:
    """What every finished run under `output` reached on the test images."""
    rows = []
    for path in sorted(output.glob("*/results.json")):
        found = json.loads(path.read_text())
        by_rank = {row["rank"]: row for row in found["results"]}
        dense = by_rank[1.0]
        cells = [f"{by_rank[r]['test']:.2f}" for r in RANKS]
        rows.append(
            [path.parent.name, f"{dense['validation']:.2f}", f"{dense['test']:.2f}", *cells]
        )
    kept = [f"{rank:.0%} kept" for rank in RANKS]
    return tabulate(rows, ["run", "dense\nvalidation", "dense\ntest", *kept], disable_numparse=True)


def parse(arguments: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    add = parser.add_argument
    add("--data", type=Path, help="folder with CIFAR-10: official batches, or images in folders")
    add("--model", choices=("resnet20", "resnet18"), default="resnet20")
    add("--init", type=Path, help="weights to start from, .npz or .safetensors")
    add("--regularizer", default="none", help="a registered name, or none")
    add("--weight", type=float, default=1e-3, help="strength of the penalty")
    add("--every", type=int, default=1, help="steps between penalties")
    add("--scheme", choices=("output", "input", "spatial"), help="unfolding, where it has one")
    add("--epochs", type=int, default=10)
    add("--lr", type=float, default=0.4, help="peak of the one-cycle schedule")
    add("--warmup", type=float, default=0.25, help="share of the schedule that rises to the peak")
    add("--weight-decay", type=float, default=5e-4)
    add("--label-smoothing", type=float, default=0.0)
    add("--batch-size", type=int, default=128)
    add("--validation", type=int, default=5000, help="training images kept apart")
    add("--seed", type=int, default=0)
    add("--limit", type=int, help="use so many training and test images only, to try it out")
    add("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    add("--precision", choices=("bfloat16", "float32"), default="bfloat16", help="of training")
    add("--threads", type=int, default=torch.get_num_threads(), help="of torch, on a CPU")
    add("--output", type=Path, default=Path("runs/cifar10"))
    add("--name", help="of the run; made from model, penalty, weight and seed otherwise")
    add("--table", action="store_true", help="print what the runs under --output found, no more")
    options = parser.parse_args(arguments)
    if options.name is None:
        strength = "" if options.regularizer == "none" else f"-{options.weight:g}"
        scheme = f"-{options.scheme}" if options.scheme else ""
        start = "tuned" if options.init else "scratch"
        options.name = (
            f"{options.model}-{start}-{options.regularizer}{scheme}{strength}-seed{options.seed}"
        )
    if options.data is None and not options.table:
        parser.error("--data is needed: the folder with CIFAR-10")
    return options


def split(options: argparse.Namespace) -> tuple[Images, dict[str, Images]]:
    """Images to train on, and those to measure on by name."""
    train, test = load(options.data)
    # One split for all seeds, so that no network is chosen by images another was trained on.
    order = torch.randperm(len(train.labels), generator=torch.Generator().manual_seed(0))
    parts = {"validation": train.part(order[: options.validation]), "test": test}
    rest = train.part(order[options.validation :][: options.limit])
    parts = {name: Images(*(t[: options.limit] for t in part)) for name, part in parts.items()}
    device = torch.device(options.device)
    return rest.to(device), {name: part.to(device) for name, part in parts.items()}


def main(arguments: list[str] | None = None) -> dict[str, Any] | None:
    options = parse(arguments)
    torch.set_num_threads(options.threads)
    torch.backends.cudnn.benchmark = True  # batches are of one size
    if options.table:
        print(table(options.output))
        return None
    train, parts = split(options)
    run = Run(options, train)
    run.resume()
    while len(run.history) < options.epochs:
        run.epoch()
        run.save()
        row = run.history[-1]
        print(
            f"{options.name}: epoch {len(run.history)} of {options.epochs}, "
            f"loss {row['loss']:.4f}, {row['seconds']:.0f} s",
            flush=True,
        )
    network = run.network.eval()
    save_file(
        {name: tensor.contiguous() for name, tensor in network.state_dict().items()},
        run.folder / "network.safetensors",
    )
    results = {
        "options": {name: str(value) for name, value in vars(options).items()},
        "history": run.history,
        "results": evaluate(network, parts),
    }
    (run.folder / "results.json").write_text(json.dumps(results, indent=1) + "\n")
    rows = [[f"{row['rank']:.0%}", row["parameters"], row["validation"], row["test"]]
            for row in results["results"]]  # fmt: skip
    print(tabulate(rows, ["kept", "parameters", "validation %", "test %"], floatfmt=".2f"))
    return results


if __name__ == "__main__":
    main()
