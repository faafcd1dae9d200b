"""The models of tests/data, whose files this and every later version loads.

`python tests/checkpoint/kept.py` writes those of the present version: only when it is a new one,
and beside those that are there.
"""

from __future__ import annotations

from pathlib import Path

import torch
from torch import nn

DATA = Path(__file__).parents[1] / "data"


class Network(nn.Module):
    """A layer of every kind that torch.nn has, with something tied and something computed."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(40, 12)
        self.convolution = nn.Conv1d(12, 12, 3, padding=1)
        self.norm = nn.BatchNorm1d(12)
        self.attention = nn.MultiheadAttention(12, 2, batch_first=True)
        self.recurrent = nn.GRU(12, 12, batch_first=True)
        self.wide = nn.Sequential(nn.Linear(12, 30), nn.ReLU(), nn.Linear(30, 12))
        self.many = nn.Linear(12, 120)
        self.head = nn.Linear(12, 40, bias=False)
        self.head.weight = self.embed.weight
        self.register_buffer("angles", torch.arange(12) / 5, persistent=False)

    def forward(self, ids: torch.Tensor) -> torch.Tensor:
        x = self.embed(ids) + self.angles
        x = self.norm(self.convolution(x.mT)).mT
        x = x + self.attention(x, x, x, need_weights=False)[0]
        x = self.recurrent(x)[0]
        x = x + self.wide(x) + self.many(x).unflatten(-1, (10, 12)).mean(-2)
        return self.head(x)


INPUTS = torch.tensor([[0, 39, 7, 7], [1, 2, 3, 4]])


def compressed() -> nn.Module:
    from skcompress import LowRankCompressor, MagnitudePruner, SVDCompressor, TuckerCompressor
    from skcompress.decompositions.low_rank_sparse import LowRankSparse

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        small: nn.Module = Network().eval()
    sparse = LowRankSparse(density=0.05)
    small = TuckerCompressor(6, layers="convolution").fit_transform(small)
    small = LowRankCompressor(sparse, 4, layers="wide.0").fit_transform(small)
    small = SVDCompressor(4, pivot=True, layers=["wide.2", "attention"]).fit_transform(small)
    small = SVDCompressor(4, layers=["embed", "head", "recurrent"]).fit_transform(small)
    small = MagnitudePruner(0.8, layers="many").fit_transform(small)
    small.recurrent.requires_grad_(False)
    return small


if __name__ == "__main__":
    from safetensors.torch import save_file

    from skcompress import save
    from skcompress.checkpoint.files import VERSION

    model = compressed()
    save(model, DATA / f"format{VERSION}.safetensors")
    save(model, DATA / f"format{VERSION}", shard_bytes=6000)
    with torch.no_grad():
        save_file({"outputs": model(INPUTS)}, DATA / f"format{VERSION}.outputs.safetensors")
