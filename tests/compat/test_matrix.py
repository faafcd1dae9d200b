"""Every kind of layer under everything that PyTorch offers to do with it."""

from __future__ import annotations

import copy
from pathlib import Path

import pytest
import torch
import torch.distributed as dist
from compat_cases import CASES, KINDS, RECURRENT, case
from compat_known import KNOWN, known
from compat_uses import USES
from models import distance, seeded
from torch import nn

from skcompress import SVDCompressor, to_plain
from skcompress.layers import densify

_SEQUENCES = ("attention", *RECURRENT)
# Where others would show nothing, or nothing else.
_ONLY = {
    "export_of_any_length": [c for c in CASES if c[0] in _SEQUENCES],
    "inductor": [("linear", "plain"), ("convolution", "plain")],  # slow
    "onnx": [c for c in CASES if c not in [(kind, "pivot") for kind in RECURRENT]],  # slow
    # Only nn.Linear is quantized.
    "int8": [c for c in CASES if c[0] in ("linear", "conv1d of transformers", *_SEQUENCES)],
    # There is such a layout of images and of volumes.
    "channels_last": [
        c for c in CASES
        if c[0] in ("convolution", "3-d convolution", "transposed convolution")
    ],
}  # fmt: skip
_ALL = [(use, *each) for use in USES for each in _ONLY.get(use, CASES)]


@pytest.fixture(scope="module", autouse=True)
def _group_of_one(tmp_path_factory):
    store = dist.FileStore(str(tmp_path_factory.mktemp("group") / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield
    dist.destroy_process_group()


@pytest.mark.parametrize(("use", "kind", "form"), _ALL, ids=["-".join(one) for one in _ALL])
def test_matrix(use, kind, form):
    exception = known(use, kind, form)
    if exception is None:
        USES[use](case(kind, form))
        return
    with pytest.raises(Exception, match=exception.message):
        USES[use](case(kind, form))
    original = case(kind, form)
    original.module = densify(original.module)
    if exception.alike:
        with pytest.raises(Exception, match=r".+"):
            USES[use](original)
    else:
        USES[use](original)


def test_every_exception_is_tried_and_documented():
    tried = {(use, kind, form) for use, kind, form in _ALL if known(use, kind, form)}
    for exception in KNOWN:
        assert tried & {(exception.use, k, f) for k in exception.kinds for f in exception.forms}
    page = (Path(__file__).parents[2] / "docs" / "compatibility.md").read_text().splitlines()
    rows = [line for line in page if line.startswith("| `torch")]
    assert rows == [exception.row for exception in KNOWN]
    assert {kind for kind, _ in CASES} == set(KINDS)


def test_instead_of_compiling_the_training_of_an_lstm():
    lstm = case("lstm", "pivot")
    torch.compiler.reset()
    with torch.no_grad():
        fast = torch.compile(lstm.module, backend="aot_eager", fullgraph=True)
        assert distance(fast(*lstm.arguments), lstm.result()) < 1e-5
    model = nn.Sequential(nn.Linear(10, 10), copy.deepcopy(lstm.module))
    torch.compiler.disable(model[1])
    fast = torch.compile(model, backend="aot_eager")
    fast(*lstm.arguments)[0].sum().backward()
    assert all(p.grad is not None for p in model.parameters())


@pytest.mark.parametrize(
    ("kind", "form"), [*((kind, "pivot") for kind in RECURRENT), ("convolution", "sparse")]
)
def test_instead_of_torchscript_with_factors(kind, form):
    small = case(kind, form)
    expected = small.result()
    small.module = to_plain(small.module, dense=True)
    USES["script"](small)
    assert distance(small.result(), expected) < 1e-5


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(60, 24), nn.Linear(24, 60, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x):
        return self.head(self.embed(x))


@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module")
def test_tied_factors_are_sharded_as_one_group():
    from torch.distributed.fsdp import fully_shard

    mesh = dist.init_device_mesh("cpu", (1,))
    small = SVDCompressor(rank=4).fit_transform(seeded(Tied))
    x = torch.tensor([[1, 2, 59]])
    expected = small(x)
    fully_shard([small.embed, small.head], mesh=mesh)
    fully_shard(small, mesh=mesh)
    assert distance(small(x), expected) < 1e-6
