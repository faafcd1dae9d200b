"""Stand-ins under the tools that look inside a model: offloading, sharding, TorchScript."""

from __future__ import annotations

import copy

import pytest
import torch
import torch.distributed as dist
from models import LAYERS, RANK, distance, layer, seeded
from torch import nn

from skcompress import LowRankCompressor, MagnitudePruner, Pruner, SVDCompressor
from skcompress.decompositions.low_rank_sparse import LowRankSparse

every_stand_in = pytest.mark.parametrize(
    ("name", "pivot"), [(name, pivot) for name in LAYERS for pivot in (False, True)]
)


def stand_in(name: str, pivot: bool) -> tuple[nn.Module, tuple]:
    dense, arguments = layer(name, torch.float32)
    return SVDCompressor(rank=RANK, pivot=pivot).fit_transform(dense), arguments


@every_stand_in
def test_offloaded_by_accelerate(name, pivot):
    accelerate = pytest.importorskip("accelerate")
    small, arguments = stand_in(name, pivot)
    with torch.no_grad():
        expected = small(*arguments)
        offloaded = accelerate.cpu_offload(copy.deepcopy(small), torch.device("cpu"))
        assert all(p.is_meta for p in offloaded.parameters())
        assert distance(offloaded(*arguments), expected) == 0


@pytest.fixture(scope="module")
def mesh(tmp_path_factory):
    """One process, as a group of its own."""
    store = dist.FileStore(str(tmp_path_factory.mktemp("group") / "store"), 1)
    dist.init_process_group("gloo", store=store, rank=0, world_size=1)
    yield dist.init_device_mesh("cpu", (1,))
    dist.destroy_process_group()


@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module")
@every_stand_in
def test_sharded_layer_by_layer(name, pivot, mesh):
    from torch.distributed.fsdp import fully_shard

    small, arguments = stand_in(name, pivot)
    expected = small(*arguments)
    sharded = copy.deepcopy(small)
    for module in list(sharded.modules())[:0:-1]:
        if list(module.parameters(recurse=False)):
            fully_shard(module, mesh=mesh)
    fully_shard(sharded, mesh=mesh)
    found = sharded(*arguments)
    assert distance(found, expected) < 1e-6
    (found[0] if isinstance(found, tuple) else found).sum().backward()
    assert all(p.grad is not None for p in sharded.parameters())


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(60, 24), nn.Linear(24, 60, bias=False)
        self.head.weight = self.embed.weight

    def forward(self, x):
        return self.head(self.embed(x))


@pytest.mark.filterwarnings("ignore:FSDP2-wrapped module")
def test_tied_factors_are_sharded_as_one_group(mesh):
    from torch.distributed.fsdp import fully_shard

    small = SVDCompressor(rank=4).fit_transform(seeded(Tied))
    x = torch.tensor([[1, 2, 59]])
    expected = small(x)
    fully_shard([small.embed, small.head], mesh=mesh)
    fully_shard(small, mesh=mesh)
    assert distance(small(x), expected) < 1e-6


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("pivot", [False, True])
# torch.jit compiles neither a fused recurrent layer around computed weights nor experts.
@pytest.mark.parametrize("name", [n for n in LAYERS if n not in ("lstm", "gru", "rnn", "experts")])
def test_compiled_by_torchscript(name, pivot):
    small, arguments = stand_in(name, pivot)
    assert distance(torch.jit.script(small)(*arguments), small(*arguments)) == 0


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_a_sparse_term_is_compiled_by_torchscript():
    model = seeded(lambda: nn.Sequential(nn.Linear(40, 30)))
    small = LowRankCompressor(LowRankSparse(density=0.05), rank=0.5).fit_transform(model)
    assert small[0].term is not None
    x = seeded(lambda: torch.randn(3, 40))
    assert distance(torch.jit.script(small)(x), small(x)) == 0


@pytest.mark.parametrize(
    "compressor",
    [SVDCompressor(rank=4, metric="fisher"), MagnitudePruner(0.5), Pruner("taylor", sparsity=0.5)],
    ids=["svd", "magnitude", "taylor"],
)
@pytest.mark.parametrize("what", ["fit", "data", "model"])
def test_what_comes_out_of_inference_mode_can_be_trained(compressor, what):
    def made(inside: str, build):
        with torch.inference_mode(what == inside):
            return seeded(build)

    model = made("model", lambda: nn.Sequential(nn.Linear(20, 30), nn.ReLU(), nn.Linear(30, 5)))
    data = made("data", lambda: torch.randn(60, 20))
    with torch.inference_mode(what == "fit"):
        small = compressor.fit_transform(model, data)
    small(torch.ones(2, 20)).sum().backward()
    assert all(p.grad is not None for p in small.parameters())


def test_layers_that_are_not_to_be_pruned_may_hold_anything():
    MagnitudePruner(0.5).fit(nn.Sequential(nn.LazyLinear(4), nn.Linear(40, 40)))
    model = nn.Sequential(nn.Linear(20, 64), nn.Linear(64, 64))
    model[1].weight = nn.Parameter(model[1].weight.to(torch.float8_e4m3fn), requires_grad=False)
    MagnitudePruner(0.5, exclude="1").fit(model)
