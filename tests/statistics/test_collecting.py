"""How a model is run: passes, draws, masks, shared layers, and what is left untouched."""

from __future__ import annotations

import random as python_random
import subprocess
import sys

import numpy as np
import pytest
import torch
from models import random, seeded
from statistics_cases import assert_moments, statistics
from torch import nn
from torch.nn.utils import parametrizations, prune
from torch.utils.data import DataLoader, TensorDataset

from skcompress.errors import (
    CalibrationValueError,
    ForwardError,
    MetaWeightError,
    NonFiniteInputError,
)
from skcompress.network.batches import batches
from skcompress.network.weights import select
from skcompress.precision import full_precision
from skcompress.statistics.collecting import collect, stream
from skcompress.testing.untouched import check_untouched, snapshot

X = random(6, 3, 8, 8, dtype=torch.float32)


def network():
    return seeded(
        lambda: nn.Sequential(
            nn.Conv2d(3, 8, 3, padding=1), nn.BatchNorm2d(8), nn.ReLU(), nn.Dropout(),
            nn.Conv2d(8, 12, 3, stride=2), nn.Flatten(), nn.Linear(108, 10),
        )
    )  # fmt: skip


def assert_same(found, expected, **tolerance):
    assert list(found) == list(expected)
    for name, value in expected.items():
        tolerance = tolerance or {"rtol": 1e-5, "atol": 1e-6}
        torch.testing.assert_close(found[name].moments.gram, value.moments.gram, **tolerance)
        torch.testing.assert_close(found[name].moments.mean, value.moments.mean, **tolerance)
        assert torch.equal(found[name].moments.count, value.moments.count)


def test_the_cut_into_batches_does_not_matter():
    model = network()
    expected = statistics(model, X)
    assert list(expected) == ["0", "4", "6"]
    assert_same(statistics(model, [x[None] for x in X]), expected)
    assert_same(statistics(model, [X[:4], X[4:]], memory=1), expected)


def test_several_passes_give_what_one_gives_and_hold_less():
    model = network()
    sites = select(model).sites
    expected = statistics(model, X)
    reads = []

    class Data(list):
        def __iter__(self):
            reads.append(len(self))
            return super().__iter__()

    found = collect(model, sites, batches("Test", Data([X]), model), memory=1)
    assert reads == [1, 1, 1]
    assert_same(found, expected, rtol=0, atol=0)
    both = 8 * (27**2 + 72**2)
    collect(model, sites, batches("Test", Data([X]), model), memory=both)
    assert len(reads) == 3 + 2
    collect(model, sites, batches("Test", Data([X]), model), memory=both - 1)
    assert len(reads) == 5 + 3


def test_draws_are_seeded_whatever_the_passes():
    model = network()
    first = statistics(model, X, max_positions=20)
    assert first["0"].moments.used.tolist() == [20]
    assert first["0"].moments.count.tolist() == [6 * 64]
    assert_same(statistics(model, X, max_positions=20), first, rtol=0, atol=0)
    assert_same(statistics(model, X, max_positions=20, memory=1), first, rtol=0, atol=0)
    other = statistics(model, X, max_positions=20, seed=1)
    assert not torch.equal(other["0"].moments.gram, first["0"].moments.gram)
    whole = statistics(model, X, max_positions=6 * 64)
    assert_same(whole, statistics(model, X), rtol=0, atol=0)


@pytest.mark.parametrize("groups", [1, 3])
def test_draws_are_unbiased_over_calls_of_different_size(groups):
    conv = nn.ConvTranspose2d(6, 6, 3, groups=groups, bias=False)
    x = random(4, 6, 5, 4, dtype=torch.float32)
    data = [x, 3 * x[:1, :, :3]]
    exact = statistics(conv, data)["(model)"].moments
    errors, means = [], []
    for seed in range(200):
        drawn = statistics(conv, data, max_positions=25, seed=seed)["(model)"].moments
        assert drawn.used.tolist() == [50] * groups
        assert torch.equal(drawn.count, exact.count)
        errors.append(drawn.gram - exact.gram)
        means.append(drawn.mean - exact.mean)
    for error in (torch.stack(errors), torch.stack(means)):
        typical = error.flatten(1).norm(dim=1).mean()
        assert typical > 0
        # The mean of 200 independent errors is about 14 times smaller than one of them.
        assert error.mean(0).norm() < 2 * typical / 200**0.5


def test_patches_in_pieces_smaller_than_an_image(monkeypatch):
    model = network()
    expected = statistics(model, X)
    drawn = statistics(model, X, max_positions=30)
    for size in (1, 27 * 20, 27 * 64 * 2):
        monkeypatch.setattr("skcompress.statistics.moments._PIECE", {"cpu": size})
        assert_same(statistics(model, X), expected)
        assert_same(statistics(model, X, max_positions=30), drawn)


def test_a_layer_called_twice_and_a_tied_one_pool_their_inputs():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.a, self.b = nn.Linear(6, 6), nn.Linear(6, 6)
            self.b.weight = self.a.weight

        def forward(self, x):
            once = self.a(x)
            self.seen = [x, once, self.a(once)]
            return self.b(self.seen[2])

    model = seeded(Twice).double()
    x = random(7, 6)
    found = statistics(model, [x])
    model(x)
    assert list(found) == ["a"]
    assert_moments(found["a"], torch.cat(model.seen), tolerance=1e-10)


def test_an_embedding_tied_to_the_head_has_both_statistics():
    class Language(nn.Module):
        def __init__(self):
            super().__init__()
            self.embedding = nn.Embedding(11, 5)
            self.head = nn.Linear(5, 11, bias=False)
            self.head.weight = self.embedding.weight

        def forward(self, ids):
            return self.head(self.embedding(ids).cumsum(1))

    model = seeded(Language)
    ids = torch.tensor([[1, 2, 2], [10, 1, 2]])
    (found,) = statistics(model, ids).values()
    assert found.lookups.tolist() == [0, 2, 3, 0, 0, 0, 0, 0, 0, 0, 1]
    assert_moments(found, model.embedding(ids).cumsum(1).flatten(0, 1))


def test_layers_of_one_network_draw_independently():
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 4, bias=False))
    with torch.no_grad():
        model[0].weight.copy_(torch.eye(4))
    one, two = statistics(model, random(50, 4, dtype=torch.float32), max_positions=5).values()
    assert not torch.equal(one.moments.gram, two.moments.gram)


def test_what_no_batch_reaches_is_absent():
    class Branch(nn.Module):
        def __init__(self):
            super().__init__()
            self.used, self.idle = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            return self.used(x) if len(x) else self.idle(x)

    assert list(statistics(Branch(), torch.ones(3, 4))) == ["used"]


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
def test_half_precision(dtype):
    model = seeded(lambda: nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))).to(dtype)
    x = random(50, 8, dtype=torch.float32)
    found = statistics(model, x)
    assert_moments(found["0"], x.to(dtype))
    assert_moments(found["2"], model[:2](x.to(dtype)))


def test_products_are_in_float32_under_autocast_and_where_shortcuts_are_allowed():
    linear = seeded(lambda: nn.Linear(8, 3))
    x = random(50, 8, dtype=torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        assert_moments(statistics(linear, x)["(model)"], x, tolerance=1e-6)
    torch.set_float32_matmul_precision("medium")
    try:
        assert_moments(statistics(linear, x)["(model)"], x, tolerance=1e-6)
        with full_precision():
            assert torch.get_float32_matmul_precision() == "highest"
            assert not torch.backends.cuda.matmul.allow_tf32
        assert torch.get_float32_matmul_precision() == "medium"
        assert torch.backends.cuda.matmul.allow_tf32
    finally:
        torch.set_float32_matmul_precision("highest")


def test_full_precision_after_the_newer_switches_were_used():
    script = """
import torch
from skcompress.precision import full_precision
switch = getattr(torch.backends.cuda.matmul, "fp32_precision", None) and torch.backends.cuda.matmul
if switch:
    switch.fp32_precision = "tf32"
    with full_precision():
        assert switch.fp32_precision == "ieee"
        assert not switch.allow_tf32
    assert switch.fp32_precision == "tf32"
"""
    # In a process of its own: torch cannot forget that the two kinds were mixed.
    subprocess.run([sys.executable, "-c", script], check=True)


@pytest.mark.parametrize("how", ["weight_norm", "spectral_norm", "old weight_norm", "pruned"])
def test_computed_weights(how):
    conv = seeded(lambda: nn.Conv2d(3, 8, 3))
    if how == "pruned":
        prune.l1_unstructured(conv, "weight", 0.5)
    elif how == "old weight_norm":
        with pytest.warns(FutureWarning):
            torch.nn.utils.weight_norm(conv)
    else:
        conv = seeded(lambda: getattr(parametrizations, how)(conv))
    model = nn.Sequential(conv).train()
    before = snapshot(model)
    found = statistics(model, X)
    check_untouched(how, model, before)
    assert_same(found, statistics(nn.Sequential(nn.Conv2d(3, 8, 3)), X))


def test_transformer_encoder_in_eval_mode():
    """Neither torch's fused kernel nor its nested tensors hide a layer; padding is left out."""
    layer = seeded(lambda: nn.TransformerEncoderLayer(16, 4, 24, batch_first=True))
    model = nn.TransformerEncoder(layer, 2).eval()
    src = random(3, 5, 16, dtype=torch.float32)
    padding = torch.arange(5) >= torch.tensor([[5], [2], [4]])
    before = snapshot(model)
    found = statistics(model, [{"src": src, "src_key_padding_mask": padding}])
    check_untouched("encoder", model, before)
    assert len(found) == 2 * 6
    assert {value.moments.count.item() for value in found.values()} == {11}
    sequences = [s[: 5 - int(p.sum())] for s, p in zip(src, padding, strict=True)]
    single = statistics(model, [{"src": s[None]} for s in sequences])
    assert_same(found, single, rtol=1e-4, atol=1e-5)
    # Without hooks in a layer, torch takes the fused kernel for it: the same but for rounding.
    passes = statistics(model, [{"src": src, "src_key_padding_mask": padding}], memory=1)
    assert_same(passes, found)
    assert_moments(found["layers.0.self_attn.q_proj"], torch.cat(sequences))


def bert():
    transformers = pytest.importorskip("transformers")
    config = transformers.BertConfig(
        hidden_size=16, num_hidden_layers=1, num_attention_heads=2, intermediate_size=24,
        vocab_size=40, max_position_embeddings=8,
    )  # fmt: skip
    return seeded(lambda: transformers.BertForSequenceClassification(config)).eval()


def test_padding_of_a_dict_batch_does_not_count():
    transformers = pytest.importorskip("transformers")
    model = bert()
    ids = 1 + random(3, 39).argsort(-1)[:, :6]
    lengths = [6, 2, 3]
    mask = (torch.arange(6) < torch.tensor(lengths)[:, None]).long()
    batch = {"input_ids": ids, "attention_mask": mask, "labels": torch.tensor([0, 1, 0])}
    found = statistics(model, [transformers.BatchEncoding(batch)])
    sequences = [{"input_ids": i[None, :n]} for i, n in zip(ids, lengths, strict=True)]
    single = statistics(model, sequences)
    assert list(found) == list(single)
    for name, value in single.items():
        if value.moments is None:
            if "position" not in name:
                assert torch.equal(found[name].lookups, value.lookups), name
        else:
            of_both = found[name].moments.gram, value.moments.gram
            # The forwards are in float32, of batches of other sizes.
            torch.testing.assert_close(*of_both, msg=name, rtol=1e-6, atol=1e-6)
            assert torch.equal(found[name].moments.count, value.moments.count)
    assert found["bert.pooler.dense"].moments.count.tolist() == [3]
    assert found["bert.encoder.layer.0.output.dense"].moments.count.tolist() == [11]


def test_a_loader_of_pairs_and_its_random_numbers():
    model = network()
    data = TensorDataset(X, torch.arange(6))
    states = (torch.get_rng_state(), np.random.get_state()[1].copy(), python_random.getstate())
    found = statistics(model, DataLoader(data, batch_size=4, shuffle=True), memory=1)
    assert torch.equal(states[0], torch.get_rng_state())
    assert np.array_equal(states[1], np.random.get_state()[1])
    assert states[2] == python_random.getstate()
    assert_same(found, statistics(model, X))


@pytest.mark.parametrize("training", [True, False])
def test_the_model_is_untouched(training):
    model = network().train(training)
    model[2].eval()
    before = snapshot(model)
    found = statistics(model, X, verbose=False)
    check_untouched("collect", model, before)
    model.eval()
    assert_same(found, statistics(model, X), rtol=0, atol=0)
    with pytest.raises(ForwardError, match=r"batch 1 .*of Test, .*float32 \(1, 2\)"):
        statistics(model, [X, torch.ones(1, 2)])
    generator = stream(model, select(model).sites, batches("Test", X, model), memory=1)
    next(generator)
    assert not any(m._forward_hooks for m in model.modules())
    del generator
    model.train(training)
    model[2].eval()
    check_untouched("after errors", model, before)


def test_a_forward_that_writes_into_the_model():
    class Counting(nn.Module):
        def __init__(self):
            super().__init__()
            self.register_buffer("calls", torch.zeros(()))
            self.table = nn.Embedding(5, 3, max_norm=0.1)
            self.head = nn.Linear(3, 4)

        def forward(self, ids):
            self.calls += 1
            return self.head(self.table(ids))

    model = seeded(Counting)
    before = snapshot(model)
    found = statistics(model, torch.tensor([[0, 1], [2, 2]]))
    check_untouched("a writing forward", model, before)
    assert found["head"].moments.count.tolist() == [4]


def test_covariance():
    linear = seeded(lambda: nn.Linear(4, 2)).double()
    x = 3 + random(50, 4)
    found = statistics(linear, x)["(model)"].moments.covariance[0]
    torch.testing.assert_close(found, torch.cov(x.mT, correction=0))


@pytest.mark.parametrize("size", [1e-25, 1.0, 1e15])
def test_inputs_far_from_zero_and_of_any_size(size):
    linear = seeded(lambda: nn.Linear(4, 2))
    x = seeded(lambda: 1000 + torch.randn(50, 4)) * size
    found = statistics(linear, [x[:20], x[20:]])["(model)"].moments
    expected = torch.cov(x.double().mT, correction=0)
    torch.testing.assert_close(
        found.covariance[0] / size**2, expected / size**2, rtol=1e-5, atol=1e-6
    )
    whole = found.gram[0] / size**2
    torch.testing.assert_close(
        whole, (x.double().mT @ x.double()) / size**2 / 50, rtol=1e-6, atol=0
    )


def test_inputs_that_never_change_have_no_covariance():
    linear = seeded(lambda: nn.Linear(4, 2))
    x = seeded(lambda: torch.randn(1, 4)).expand(50, 4)
    found = statistics(linear, [x[:20], x[20:]])["(model)"].moments
    assert not found.covariance.any()
    torch.testing.assert_close(found.mean[0], x[0].double())


def test_values_that_overflow_are_named_by_their_layer():
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2))
    with torch.no_grad():
        model[0].weight.fill_(1e38)
    with pytest.raises(NonFiniteInputError, match="layer '1'"):
        statistics(model, torch.full((2, 3), 1e3))


def test_settings_without_a_meaning():
    model = nn.Linear(3, 2)
    with pytest.raises(CalibrationValueError, match="memory"):
        statistics(model, torch.ones(2, 3), memory=0)
    with pytest.raises(CalibrationValueError, match="max_positions"):
        statistics(model, torch.ones(2, 3), max_positions=0)
    with pytest.raises(MetaWeightError, match="meta device"):
        statistics(nn.Linear(3, 2, device="meta"), torch.ones(2, 3))


def test_progress(capsys):
    statistics(nn.Linear(3, 2), torch.ones(2, 3), verbose=True)
    assert "calibrate" in capsys.readouterr().err
