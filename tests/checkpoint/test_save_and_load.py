from __future__ import annotations

import copy
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from models import LAYERS, RANK, layer, seeded
from saved import check_comes_back, images, small_network
from torch import nn
from torch.nn.utils import parametrizations

from skcompress import (
    LowRankCompressor,
    MagnitudePruner,
    Pruner,
    SVDCompressor,
    TuckerCompressor,
    count_bytes,
    load,
    save,
)
from skcompress.decompositions.low_rank_sparse import LowRankSparse
from skcompress.errors import ArchitectureError, FactoryError, ModelTypeError, SaveError
from skcompress.layers.narrowed import note_number, note_shapes


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["single", "half"])
@pytest.mark.parametrize("pivot", [False, True], ids=["plain", "pivot"])
@pytest.mark.parametrize("name", list(LAYERS))
def test_every_stand_in_comes_back(name, pivot, dtype, tmp_path):
    dense, arguments = layer(name, dtype)
    small = SVDCompressor(rank=RANK, pivot=pivot).fit_transform(dense)
    check_comes_back(small, LAYERS[name][0], tmp_path, *arguments)
    check_comes_back(small, dense, tmp_path, *arguments)


def twice(model: nn.Module) -> nn.Module:
    half = TuckerCompressor(0.6, exclude=["9", "11"]).fit_transform(model)
    return SVDCompressor(4, layers=["9", "11"]).fit_transform(half)


WAYS = {
    "svd": lambda m: SVDCompressor(0.4).fit_transform(m),
    "data": lambda m: SVDCompressor(0.4, fold_norm=True).fit_transform(m, images()),
    "tucker": lambda m: TuckerCompressor(0.4).fit_transform(m, images()),
    "spatial": lambda m: LowRankCompressor("spatial_svd", rank=0.4).fit_transform(m),
    "sparse term": lambda m: LowRankCompressor(LowRankSparse(density=0.05), 0.5).fit_transform(m),
    "twice": twice,
    "pruned": lambda m: MagnitudePruner(0.6).fit_transform(m),
    "pruned to rows": lambda m: MagnitudePruner(0.97).fit_transform(m),
    "factors pruned": lambda m: MagnitudePruner(0.5).fit_transform(
        SVDCompressor(0.5).fit_transform(m)
    ),
    "refitted": lambda m: Pruner("obs", sparsity=0.5, refit=True).fit_transform(m, images()),
    "not compressed": copy.deepcopy,
    "training": lambda m: copy.deepcopy(m).train(),
}


@pytest.mark.parametrize("way", list(WAYS))
def test_however_it_was_compressed(way, tmp_path):
    small = WAYS[way](small_network())
    if way == "training":
        small[1].eval(), small[4].eval()  # a forward is to change nothing
    check_comes_back(small, small_network, tmp_path, images(3))


def test_fine_tuned_and_partly_frozen(tmp_path):
    small = SVDCompressor(0.4).fit_transform(small_network())
    with torch.no_grad():
        for parameter in small.parameters():
            parameter.mul_(1.5)
    small[0].requires_grad_(False)
    again = check_comes_back(small, small_network, tmp_path, images(3))
    assert not any(p.requires_grad for p in again[0].parameters())


def narrowed(model: nn.Module, n: int = 10) -> nn.Module:
    """Keep the first channels between two convolutions, as a channel pruner does."""
    for one in (model[0], model[1], model[3]):
        note_shapes(one)
    model[0].weight = nn.Parameter(model[0].weight.detach()[:n].clone())
    model[3].weight = nn.Parameter(model[3].weight.detach()[:, :n].clone())
    for name in ("weight", "bias"):
        setattr(model[1], name, nn.Parameter(getattr(model[1], name).detach()[:n].clone()))
    model[1].running_mean, model[1].running_var = torch.zeros(n), torch.ones(n)
    model[0].out_channels = model[1].num_features = model[3].in_channels = n
    return model


@pytest.mark.parametrize("then", [None, SVDCompressor(0.6), MagnitudePruner(0.5)], ids=str)
def test_narrowed_channels(then, tmp_path):
    small = narrowed(small_network())
    if then is not None:
        small = then.fit_transform(small)
    again = check_comes_back(small, small_network, tmp_path, images(3))
    assert repr(again) == repr(small)
    check_comes_back(again, small_network, tmp_path, images(3))


def test_narrowed_numbers(tmp_path):
    class Heads(nn.Module):
        def __init__(self):
            super().__init__()
            self.heads, self.linear = 4, nn.Linear(8, 8)

        def forward(self, x):
            return self.linear(x).unflatten(-1, (self.heads, -1))

    small = seeded(Heads)
    note_number(small, "heads")
    small.heads = 2
    check_comes_back(small, Heads, tmp_path, torch.ones(1, 8))


def test_narrow_is_not_another_architecture(tmp_path):
    save(nn.Sequential(nn.Linear(4, 6)), tmp_path / "a")
    with pytest.raises(ArchitectureError, match=r"'0' is Linear with out_features=6 in the file"):
        load(tmp_path / "a", lambda: nn.Sequential(nn.Linear(4, 8)))


def test_zeros_take_little_room(tmp_path):
    sparse = MagnitudePruner(0.9).fit_transform(nn.Sequential(nn.Linear(300, 300)))
    save(sparse, tmp_path / "a")
    assert (tmp_path / "a").stat().st_size < 0.25 * count_bytes(sparse)


def test_weights_that_were_computed(tmp_path):
    def make():
        norm = parametrizations.weight_norm
        return seeded(lambda: nn.Sequential(norm(nn.Linear(30, 40)), norm(nn.Linear(40, 30))))

    x = torch.ones(2, 30)
    check_comes_back(make(), make, tmp_path, x)
    check_comes_back(SVDCompressor(5, layers="0").fit_transform(make()), make, tmp_path, x)
    check_comes_back(MagnitudePruner(0.5, layers="1").fit_transform(make()), make, tmp_path, x)


class Positions(nn.Module):
    """Adds a buffer that no file has, and a tensor that is no buffer."""

    def __init__(self):
        super().__init__()
        self.linear = nn.Linear(20, 20)
        self.register_buffer("angles", torch.arange(20) / 7, persistent=False)
        self.scale = torch.linspace(0, 1, 20)

    def forward(self, x):
        return self.linear(x + self.angles) * self.scale.to(x)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16], ids=["single", "half"])
def test_what_the_model_computes_itself(dtype, tmp_path):
    small = SVDCompressor(4).fit_transform(seeded(Positions)).to(dtype)
    x = torch.ones(2, 20, dtype=dtype)
    again = check_comes_back(small, Positions, tmp_path, x)
    assert again.angles.dtype == dtype
    check_comes_back(small, Positions(), tmp_path, x)


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.embed, self.head = nn.Embedding(60, 24), nn.Linear(24, 60, bias=False)
        self.head.weight = self.embed.weight
        self.first = self.second = nn.Linear(24, 24)

    def forward(self, x):
        return self.head(self.second(self.first(self.embed(x))))


def test_what_is_shared_stays_shared(tmp_path):
    small = SVDCompressor(4).fit_transform(seeded(Shared))
    again = check_comes_back(small, Shared, tmp_path, torch.tensor([[1, 59]]))
    assert again.first is again.second
    assert again.head[0].weight is again.embed[1].weight


def transformer(name: str):
    """What builds a tiny model of a family, and inputs for it."""
    t = pytest.importorskip("transformers")
    tiny = {"vocab_size": 100, "hidden_size": 32, "intermediate_size": 48, "num_hidden_layers": 1,
            "num_attention_heads": 4}  # fmt: skip
    few = {"num_key_value_heads": 2, "max_position_embeddings": 32}
    ids = {"input_ids": torch.arange(12)[None]}
    if name == "gpt2":
        config = t.GPT2Config(vocab_size=100, n_embd=32, n_layer=1, n_head=2, n_positions=32,
                              bos_token_id=0, eos_token_id=0)  # fmt: skip
        return lambda: t.GPT2LMHeadModel(config), ids
    if name == "llama":
        return lambda: t.LlamaForCausalLM(t.LlamaConfig(**tiny, **few)), ids
    if name == "mixtral":
        config = t.MixtralConfig(**tiny, **few, num_local_experts=4)
        return lambda: t.MixtralForCausalLM(config), ids
    if name == "bert":
        return lambda: t.BertForMaskedLM(t.BertConfig(**tiny, max_position_embeddings=32)), ids
    if name == "t5":
        config = t.T5Config(vocab_size=100, d_model=32, d_kv=8, d_ff=64, num_layers=1, num_heads=4,
                            decoder_start_token_id=0)  # fmt: skip
        return lambda: t.T5ForConditionalGeneration(config), {**ids, "labels": ids["input_ids"]}
    config = t.ViTConfig(hidden_size=32, num_hidden_layers=1, num_attention_heads=2,
                         intermediate_size=64, image_size=16, patch_size=4)  # fmt: skip
    return lambda: t.ViTForImageClassification(config), {"pixel_values": torch.ones(1, 3, 16, 16)}


@pytest.mark.parametrize("half", [False, True], ids=["single", "half"])
@pytest.mark.parametrize("name", ["bert", "gpt2", "t5", "llama", "mixtral", "vit"])
def test_transformers(name, half, tmp_path):
    make, inputs = transformer(name)
    small = SVDCompressor(0.6).fit_transform(seeded(make).eval())
    if half:
        small = small.bfloat16()
        inputs = {k: v.bfloat16() if v.is_floating_point() else v for k, v in inputs.items()}
    again = check_comes_back(small, make, tmp_path, **inputs)
    assert again.all_tied_weights_keys == small.all_tied_weights_keys


def test_in_a_process_that_never_saw_a_compressor(tmp_path):
    small = SVDCompressor(0.4, pivot=True).fit_transform(small_network())
    save(small, tmp_path / "small.safetensors")
    torch.save((images(3), small(images(3))), tmp_path / "wanted.pt")
    code = (
        "import sys, torch; from skcompress import load\n"
        "assert not [m for m in sys.modules if m.startswith('skcompress.compressors')]\n"
        "from saved import small_network\n"
        "x, wanted = torch.load(sys.argv[2])\n"
        "assert torch.equal(load(sys.argv[1], small_network)(x), wanted)\n"
    )
    path = os.pathsep.join([str(Path(__file__).parent), str(Path(__file__).parents[1])])
    subprocess.run(
        [sys.executable, "-c", code, tmp_path / "small.safetensors", tmp_path / "wanted.pt"],
        env={**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"},
        check=True,
    )


def test_nothing_of_the_callers_changes(tmp_path):
    small, dense = SVDCompressor(0.4).fit_transform(small_network()), small_network()
    save(small, tmp_path / "a")
    before = [p.clone() for p in (*small.parameters(), *dense.parameters())]
    state = torch.get_rng_state()
    load(tmp_path / "a", dense)
    load(tmp_path / "a", lambda: nn.Sequential(*small_network()))
    assert torch.equal(state, torch.get_rng_state())
    after = [*small.parameters(), *dense.parameters()]
    assert all(torch.equal(a, b) for a, b in zip(before, after, strict=True))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda m: m.append(nn.Linear(10, 4)), "'12' is absent in the file and Linear"),
        (lambda m: m[:11], "'11' is linear in the file and absent"),
        (lambda m: nn.Sequential(*m[:2], nn.GELU(), *m[3:]), "'2' is ReLU in the file and GELU"),
        (lambda m: nn.Sequential(nn.Conv2d(3, 16, 3, padding=2), *m[1:]), "'0' is Conv2d with pad"),
        (lambda m: nn.Sequential(*m[:11], nn.Linear(40, 12)), "'11': .*weight .10, 40., where"),
        (lambda m: nn.Sequential(m[0], nn.BatchNorm2d(16, eps=1e-3), *m[2:]), "'1' .* eps=1e-05"),
    ],
    ids=["more", "fewer", "activation", "padding", "width", "eps"],
)
def test_another_architecture_is_refused_by_the_first_difference(change, message, tmp_path):
    small = SVDCompressor({"3": 6, "9": 6, "11": 4}).fit_transform(small_network())
    save(small, tmp_path / "a")
    with pytest.raises(ValueError, match=message):
        load(tmp_path / "a", lambda: change(small_network()))


def test_what_is_no_factory(tmp_path):
    save(nn.Linear(2, 2), tmp_path / "a")
    for source in (3, lambda: 3, lambda: 1 / 0):
        with pytest.raises(FactoryError):
            load(tmp_path / "a", source)
    with pytest.raises(FactoryError, match="it is compressed"):
        load(tmp_path / "a", SVDCompressor(0.4).fit_transform(small_network()))


def test_what_cannot_be_saved(tmp_path):
    with pytest.raises(ModelTypeError, match="save takes a torch"):
        save(nn.Linear, tmp_path / "a")
    with pytest.raises(SaveError, match="'weight' has no values"):
        save(nn.Linear(2, 2, device="meta"), tmp_path / "a")
    with pytest.raises(SaveError, match=r"'0\.weight' is not initialised"):
        save(nn.Sequential(nn.LazyLinear(2)), tmp_path / "a")
    assert not list(tmp_path.iterdir())
