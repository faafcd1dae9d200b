"""CIFAR-10 from disk, as arrays: the official batches, an image folder, or a compact pack.

Krizhevsky 2009, "Learning Multiple Layers of Features from Tiny Images"; nothing is downloaded.
"""

from __future__ import annotations

import lzma
import pickle
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

# Of the training images, per colour; those with which the published networks were trained.
MEAN, SPREAD = (0.485, 0.456, 0.406), (0.229, 0.224, 0.225)


class Images(NamedTuple):
    """uint8 images (n, 3, 32, 32), red, green, blue, and labels (n,) from 0 to 9."""

    pixels: Tensor
    labels: Tensor

    def part(self, index: Tensor) -> Images:
        return Images(self.pixels[index], self.labels[index])

    def to(self, device: torch.device) -> Images:
        return Images(self.pixels.to(device), self.labels.to(device))


def load(folder: Path) -> tuple[Images, Images]:
    """Training and test images from whichever of the three layouts `folder` has."""
    for marker, read in (
        ("data_batch_1", _official),
        ("labels.npz", _pack),
        ("train", _image_folder),
    ):
        for root in (folder, folder / "cifar-10-batches-py"):
            if (root / marker).exists():
                train, test = read(root)
                return train, test
    raise FileNotFoundError(
        f"{folder} holds no CIFAR-10: expected data_batch_1 ... test_batch (the official python "
        "version, unpacked), or folders train/<class>/*.png and test/<class>/*.png"
    )


def normalise(pixels: Tensor) -> Tensor:
    """float32 images, in units of standard deviations."""
    mean = torch.tensor(MEAN, device=pixels.device)[:, None, None]
    spread = torch.tensor(SPREAD, device=pixels.device)[:, None, None]
    return (pixels.float() / 255 - mean) / spread


def augment(pixels: Tensor, generator: torch.Generator) -> Tensor:
    """Random crops of 32 x 32 from images with 4 black pixels around, half of them flipped."""
    n, device = len(pixels), pixels.device
    top, left = torch.randint(9, (2, n), generator=generator).to(device)
    flip = (torch.rand(n, generator=generator) < 0.5).to(device)
    columns = torch.arange(32, device=device).expand(n, 32)
    columns = torch.where(flip[:, None], columns.flip(1), columns) + left[:, None]
    rows = torch.arange(32, device=device) + top[:, None]
    padded = torch.nn.functional.pad(pixels, (4, 4, 4, 4))
    index = torch.arange(n, device=device)[:, None, None], rows[:, :, None], columns[:, None, :]
    return padded.permute(0, 2, 3, 1)[index].permute(0, 3, 1, 2)


def _official(root: Path) -> tuple[Images, Images]:
    def read(name: str) -> tuple[np.ndarray, list[int]]:
        with open(root / name, "rb") as file:
            batch = pickle.load(file, encoding="bytes")
        return batch[b"data"].reshape(-1, 3, 32, 32), batch[b"labels"]

    batches = [read(f"data_batch_{i}") for i in range(1, 6)]
    pixels = np.concatenate([b[0] for b in batches])
    labels = np.concatenate([b[1] for b in batches])
    return _images(pixels, labels), _images(*read("test_batch"))


def _pack(root: Path) -> tuple[Images, Images]:
    """Planes G, R - G, B - G, differences along width then height (mod 256), xz."""

    def read(name: str) -> np.ndarray:
        packed = (root / f"{name}.rgb2d.xz").read_bytes()
        coded = np.frombuffer(lzma.decompress(packed), np.uint8).reshape(3, -1, 32, 32)
        green, red, blue = coded.cumsum(-1, dtype=np.uint8).cumsum(-2, dtype=np.uint8)
        return np.stack([red + green, green, blue + green], 1)

    labels = np.load(root / "labels.npz")
    pixels = np.concatenate([read(f"train{i}") for i in range(1, 6)])
    return _images(pixels, labels["train"]), _images(read("test"), labels["test"])


def _image_folder(root: Path) -> tuple[Images, Images]:
    from PIL import Image

    def read(part: Path) -> Images:
        pixels, labels = [], []
        for label, folder in enumerate(sorted(p for p in part.iterdir() if p.is_dir())):
            for path in sorted(folder.iterdir()):
                pixels.append(np.asarray(Image.open(path).convert("RGB")).transpose(2, 0, 1))
                labels.append(label)
        return _images(np.stack(pixels), np.array(labels))

    return read(root / "train"), read(root / "test")


def _images(pixels: np.ndarray, labels: np.ndarray | list[int]) -> Images:
    return Images(torch.tensor(pixels), torch.tensor(np.asarray(labels), dtype=torch.int64))
