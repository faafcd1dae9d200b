"""From what the command line names to a trained network, its data, and a measure of quality."""

from __future__ import annotations

import copy
import re
from collections.abc import Callable
from functools import cache
from hashlib import sha256
from pathlib import Path
from typing import NamedTuple, Protocol

import numpy as np
import torch
from cifar10_data import Images, load, normalise
from cifar10_networks import build, load_weights
from safetensors import safe_open
from shakespeare import Decoder, Shakespeare
from sisfall import ConvLSTM, SisFall
from torch import Tensor, nn


class Task(Protocol):
    """Inputs to calibrate with, of the training part; and how good a network is on the test part.

    unit : of the quality; better : "higher" or "lower"
    """

    unit: str
    better: str

    def calibration(self, n: int, generator: np.random.Generator) -> Tensor:
        """Draw n training inputs, as the network expects them."""
        ...

    def quality(self, network: nn.Module) -> float:
        """Measure on the test part, in `unit`s."""
        ...


class Cifar10:
    """CIFAR-10 as a task."""

    unit, better = "accuracy, %", "higher"

    def __init__(self, folder: Path, limit: int | None = None):
        """Read the images; measure on `limit` test images only, if given."""
        self.train, test = load(folder)
        # Image folders are read class by class: a part is drawn, the same one every time.
        order = torch.randperm(len(test.labels), generator=torch.Generator().manual_seed(0))
        self.test: Images = test.part(order[:limit])

    def calibration(self, n: int, generator: np.random.Generator) -> Tensor:
        """Draw n training images (n, 3, 32, 32)."""
        chosen = generator.choice(len(self.train.labels), size=n, replace=False)
        return normalise(self.train.pixels[torch.from_numpy(chosen)])

    def quality(self, network: nn.Module) -> float:
        """Per cent of test images recognised."""
        return accuracy(network, self.test)


@torch.no_grad()
def accuracy(network: nn.Module, part: Images) -> float:
    """Per cent of images recognised."""
    device = next(network.parameters()).device
    # In this layout, and in small batches, a CPU takes two thirds of the time.
    fast = copy.deepcopy(network).to(memory_format=torch.channels_last).eval()
    right = 0
    for pixels, labels in zip(*(tensor.split(64) for tensor in part), strict=True):
        images = normalise(pixels.to(device)).contiguous(memory_format=torch.channels_last)
        right += int((fast(images).argmax(1).cpu() == labels).sum())
    return 100 * right / len(part.labels)


class Subject(NamedTuple):
    """A trained network.

    name : of its file or of the run that trained it
    kind : of its architecture, "resnet20"
    digest : of its weights, so that results of another training are not taken for its own
    """

    name: str
    kind: str
    digest: str
    network: nn.Module
    task: Task


# By kind of network: the folder that its data may have below --data, and how to read it.
TASKS: dict[str, tuple[str, Callable[[Path, int | None], Task]]] = {
    "resnet": ("cifar10", Cifar10),
    "transformer": ("text", Shakespeare),
    "conv_lstm": ("sisfall", SisFall),
}


def open_subject(given: str, trained: Path, data: Path, limit: int | None) -> Subject:
    """Read a trained network and the data that it is measured on.

    given : a file of weights, the folder of a run, or the name of a run under `trained`
    data : the folder with the data, or the one with a folder for each task
    limit : how many test inputs to measure on; None for all
    """
    path = Path(given) if Path(given).exists() else trained / given
    name = path.stem if path.is_file() else path.name
    if path.is_dir():
        path = path / "network.safetensors"
    if not path.exists():
        raise FileNotFoundError(
            f"no network {given!r}: neither a file or folder of that name nor {path}. Train "
            "resnet20 by cifar10.py, transformer and conv_lstm by sequences.py"
        )
    kind, network = _architecture(path)
    load_weights(network, path)
    task = _task(re.sub(r"\d+$", "", kind), data, limit)
    return Subject(name, kind, sha256(path.read_bytes()).hexdigest()[:12], network.eval(), task)


@cache
def _task(kind: str, data: Path, limit: int | None) -> Task:
    folder, read = TASKS[kind]
    return read(data / folder if (data / folder).is_dir() else data, limit)


def _architecture(path: Path) -> tuple[str, nn.Module]:
    """Tell the network from the names and shapes of its weights."""
    if path.suffix == ".npz":
        shapes = {name: array.shape for name, array in np.load(path).items()}
    else:
        with safe_open(path, "pt") as file:
            shapes = {name: tuple(file.get_slice(name).get_shape()) for name in file.keys()}  # noqa: SIM118
    if "embedding.weight" in shapes:
        return "transformer", Decoder(shapes["embedding.weight"][0])
    if "recurrent.weight_ih_l0" in shapes:
        return "conv_lstm", ConvLSTM(shapes["head.weight"][0])
    n_blocks = sum(bool(re.fullmatch(r"layer1\.\d+\.conv1\.weight", name)) for name in shapes)
    kind = f"resnet{6 * n_blocks + 2}" if n_blocks else "resnet18"
    return kind, build(kind)
