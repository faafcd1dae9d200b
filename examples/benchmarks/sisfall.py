"""SisFall: what 38 people did, from a sensor at the waist; and a recurrent network that tells.

Sucerquia, Lopez, Vargas-Bonilla 2017, "SisFall: a fall and movement dataset", Sensors 17(1):198.
19 daily activities and 15 kinds of falls, accelerometer and gyroscope. The test people do not
appear in training. Nothing is downloaded.
"""

from __future__ import annotations

import lzma
from pathlib import Path
from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor, nn

WINDOW, STEP = 256, 128  # samples at 50 Hz
TEST_PEOPLE = ("SA19", "SA20", "SA21", "SA22", "SA23", "SE12", "SE13", "SE14", "SE15")
ACTIVITIES = (*(f"D{n:02}" for n in range(1, 20)), *(f"F{n:02}" for n in range(1, 16)))
# Counts to g (ADXL345: 32 g in 13 bits) and to 100 degrees a second (ITG3200: 4000 in 16 bits).
SCALE = torch.tensor([32 / 2**13] * 3 + [40 / 2**16] * 3)


class Recordings(NamedTuple):
    """int16 samples (time, 6) of each recording at 50 Hz, its activity, and who did it."""

    samples: list[np.ndarray]
    activities: list[str]
    people: list[str]


class ConvLSTM(nn.Module):
    """Two strided convolutions, an LSTM over what they give, the mean over time, a linear layer.

    From (batch, 6, time) to scores (batch, classes); after DeepConvLSTM (Ordonez & Roggen 2016,
    Sensors 16(1):115).
    """

    def __init__(self, classes: int = len(ACTIVITIES), width: int = 128):
        super().__init__()
        self.front = nn.Sequential(
            nn.Conv1d(6, width // 2, 5, 2, 2, bias=False), nn.BatchNorm1d(width // 2), nn.ReLU(),
            nn.Conv1d(width // 2, width, 5, 2, 2, bias=False), nn.BatchNorm1d(width), nn.ReLU(),
        )  # fmt: skip
        self.recurrent = nn.LSTM(width, width, batch_first=True)
        self.dropout = nn.Dropout(0.3)
        self.head = nn.Linear(width, classes)

    def forward(self, x: Tensor) -> Tensor:
        hidden, _ = self.recurrent(self.front(x).transpose(1, 2))
        return self.head(self.dropout(hidden.mean(1)))


class SisFall:
    """The recordings as a task: batches to train on, inputs to calibrate with, a measure."""

    unit, better = "accuracy, %", "higher"

    def __init__(self, folder: Path, limit: int | None = None):
        """Read the recordings; measure on `limit` windows only, if given, from all over the set."""
        found = read(folder)
        self.signal = torch.from_numpy(np.concatenate(found.samples))
        lengths = np.array([len(samples) for samples in found.samples])
        ends = np.cumsum(lengths)
        windows = [
            (start, end, ACTIVITIES.index(activity), person in TEST_PEOPLE)
            for begin, end, activity, person in zip(
                ends - lengths, ends, found.activities, found.people, strict=True
            )
            for start in range(begin, end - WINDOW + 1, STEP)
        ]
        table = torch.tensor(windows)
        self.train = table[table[:, 3] == 0]
        test = table[table[:, 3] == 1]
        order = torch.randperm(len(test), generator=torch.Generator().manual_seed(0))
        self.test = test[order[:limit]]

    def build(self) -> nn.Module:
        return ConvLSTM()

    def cut(self, starts: Tensor) -> Tensor:
        """Give the windows (n, 6, time) that begin there, in g and 100 degrees a second."""
        return (self.signal[starts[:, None] + torch.arange(WINDOW)] * SCALE).transpose(1, 2)

    def batch(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """Draw n windows of the training people, each moved by up to a step, and activities."""
        rows = self.train[torch.randint(len(self.train), (n,), generator=generator)]
        moved = rows[:, 0] + torch.randint(STEP, (n,), generator=generator)
        return self.cut(torch.minimum(moved, rows[:, 1] - WINDOW)), rows[:, 2]

    def calibration(self, n: int, generator: np.random.Generator) -> Tensor:
        """Draw n windows (n, 6, time) of the training people."""
        chosen = generator.choice(len(self.train), size=n, replace=n > len(self.train))
        return self.cut(self.train[torch.from_numpy(chosen), 0])

    @torch.no_grad()
    def quality(self, network: nn.Module) -> float:
        """Per cent of the test people's windows recognised."""
        network.eval()
        device = next(network.parameters()).device
        right = 0
        for rows in self.test.split(256):
            found = network(self.cut(rows[:, 0]).to(device)).argmax(1).cpu()
            right += int((found == rows[:, 2]).sum())
        return 100 * right / len(self.test)


def read(folder: Path) -> Recordings:
    """Read the recordings from whichever of the two layouts `folder` has."""
    if (folder / "sisfall_index.npz").exists():
        return _pack(folder)
    paths = sorted(folder.glob("S[AE][0-9][0-9]/[DF][0-9][0-9]_*.txt"))
    if paths:
        return _official(paths)
    raise FileNotFoundError(
        f"{folder} holds no SisFall: expected folders SA01 ... SE15 with D01_SA01_R01.txt and so on"
    )


def _official(paths: list[Path]) -> Recordings:
    """Text, 200 Hz, 9 columns, a semicolon after each line; here the mean of every 4 samples."""
    found = Recordings([], [], [])
    for path in paths:
        text = path.read_text().replace(";", ",").replace(",\n", "\n")
        rows = np.loadtxt(text.splitlines(), delimiter=",", ndmin=2)[:, :6]
        fourth = rows[: len(rows) // 4 * 4].reshape(-1, 4, 6).mean(1)
        activity, person, _ = path.stem.split("_")
        for column, value in zip(found, (fourth.round().astype(np.int16), activity, person),
                                 strict=True):  # fmt: skip
            column.append(value)
    return found


def _pack(folder: Path) -> Recordings:
    """Planes of bytes, zigzag coded differences along time, xz."""
    coded = lzma.decompress((folder / "sisfall_50hz.xz").read_bytes())
    low, high = np.frombuffer(coded, np.uint8).reshape(6, 2, -1).astype(np.uint16).swapaxes(0, 1)
    zigzag = low | (high << 8)
    steps = (zigzag >> 1).astype(np.int16) ^ -(zigzag & 1).astype(np.int16)
    samples = np.cumsum(steps, axis=1, dtype=np.int16).T
    index = np.load(folder / "sisfall_index.npz")
    parts = np.split(samples, np.cumsum(index["length"])[:-1])
    return Recordings(parts, index["code"].tolist(), index["subject"].tolist())
