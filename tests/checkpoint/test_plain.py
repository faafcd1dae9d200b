from __future__ import annotations

import os
import pickle
import subprocess
import sys

import pytest
import torch
from models import LAYERS, RANK, distance, layer, seeded
from saved import images, small_network
from torch import nn

from skcompress import LowRankCompressor, SVDCompressor, TuckerCompressor, to_plain
from skcompress.decompositions.low_rank_sparse import LowRankSparse
from skcompress.errors import ModelTypeError, PlainError

UNPICKLE = """
import sys, torch
sys.modules["skcompress"] = None
x, wanted = torch.load(sys.argv[2])
for model in (torch.load(sys.argv[1], weights_only=False), torch.jit.load(sys.argv[3])):
    assert torch.equal(model(x), wanted)
"""
PLAIN = [n for n in LAYERS if n not in ("attention", "lstm", "gru", "rnn", "experts")]


@pytest.mark.parametrize("pivot", [False, True], ids=["plain", "pivot"])
@pytest.mark.parametrize("name", PLAIN)
def test_of_torch_alone(name, pivot):
    dense, arguments = layer(name)
    small = SVDCompressor(rank=RANK, pivot=pivot).fit_transform(dense)
    plain = to_plain(small)
    assert {type(m).__module__.partition(".")[0] for m in plain.modules()} == {"torch"}
    assert b"skcompress" not in pickle.dumps(plain)
    assert distance(plain(*arguments), small(*arguments)) < 1e-12


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("compressor", [SVDCompressor(0.5), TuckerCompressor(0.5)], ids=str)
def test_where_skcompress_is_not_installed(compressor, tmp_path):
    plain = to_plain(compressor.fit_transform(small_network()))
    torch.save(plain, tmp_path / "plain.pt")
    torch.save((images(2), plain(images(2))), tmp_path / "wanted.pt")
    torch.jit.script(plain).save(tmp_path / "script.pt")
    subprocess.run(
        [sys.executable, "-c", UNPICKLE]
        + [str(tmp_path / f"{name}.pt") for name in ("plain", "wanted", "script")],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        check=True,
    )


@pytest.mark.parametrize("name", ["attention", "lstm", "experts"])
def test_what_cannot_be_plain_says_why(name):
    dense, arguments = layer(name)
    small = nn.ModuleDict({"it": SVDCompressor(rank=RANK).fit_transform(dense)})
    with pytest.raises(PlainError, match=r"'it': .*, wh"):
        to_plain(small)
    plain = to_plain(small, dense=True)["it"]
    assert type(plain) is type(dense)
    assert distance(plain(*arguments), dense(*arguments)) < 1e-12


def test_a_sparse_term_cannot_be_plain():
    model = seeded(lambda: nn.Sequential(nn.Linear(40, 30)))
    small = LowRankCompressor(LowRankSparse(density=0.05), rank=0.5).fit_transform(model)
    with pytest.raises(PlainError, match="sparse term"):
        to_plain(small)


@pytest.mark.parametrize("masked", [False, True])
def test_inside_a_transformer_of_torch(masked):
    layers = nn.TransformerEncoderLayer(24, 4, 48, batch_first=True)
    model = seeded(lambda: nn.TransformerEncoder(layers, 2).eval())
    small = SVDCompressor(0.7, exclude=[nn.MultiheadAttention]).fit_transform(model)
    x = seeded(lambda: torch.randn(2, 7, 24))
    mask = torch.arange(7).expand(2, 7) >= 5 if masked else None
    with torch.no_grad():
        ours = to_plain(small)(x, src_key_padding_mask=mask)
        theirs = small(x, src_key_padding_mask=mask)
    assert distance(ours[:, :5], theirs[:, :5]) < 1e-6


def test_is_a_copy_of_its_own():
    small = SVDCompressor(0.5).fit_transform(small_network())
    plain = to_plain(small)
    assert not {p.data_ptr() for p in plain.parameters()} & {
        p.data_ptr() for p in small.parameters()
    }
    with pytest.raises(ModelTypeError, match="to_plain takes"):
        to_plain(nn.Linear)
