from __future__ import annotations

import pytest
import torch
from models import RANK, distance, exact, factorized, low_rank_, random, seeded
from torch import nn
from torch.nn.utils import parametrizations

from skcompress import SVDCompressor, TuckerCompressor, count_parameters
from skcompress.layers.embedding import FactorizedEmbedding
from skcompress.layers.linear import FactorizedLinear

IDS = torch.tensor([[0, 3, 29], [7, 7, 1]])


def embedding(num: int = 30, dim: int = 12, **settings) -> nn.Embedding:
    return low_rank_(seeded(lambda: nn.Embedding(num, dim, dtype=torch.float64, **settings)))


@pytest.mark.parametrize(("num", "dim"), [(30, 12), (12, 40), (16, 16)])
@pytest.mark.parametrize("ids", [torch.tensor(3), torch.arange(5), torch.zeros(2, 0).long()])
def test_looks_up_the_same_rows(num, dim, ids):
    dense = embedding(num, dim)
    small = exact().fit_transform(dense)
    assert isinstance(small, FactorizedEmbedding)
    assert distance(small(ids), dense(ids)) < 1e-12


def test_answers_as_the_original():
    dense = embedding(padding_idx=3, scale_grad_by_freq=True)
    small = exact().fit_transform(dense)
    for name in ("num_embeddings", "embedding_dim", "padding_idx", "max_norm", "norm_type",
                 "scale_grad_by_freq", "sparse"):  # fmt: skip
        assert getattr(small, name) == getattr(dense, name), name
    assert distance(small.weight, dense.weight) < 1e-12
    assert small[0].weight.shape == (30, RANK)


def test_autocast_leaves_the_precision_of_a_look_up():
    dense = embedding().float()
    small = exact().fit_transform(dense)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert small(IDS).dtype == dense(IDS).dtype == torch.float32
        assert distance(small(IDS), dense(IDS)) < 0.02


def test_the_padding_row_gets_no_gradient_and_stays_zero():
    dense = seeded(lambda: nn.Embedding(30, 12, padding_idx=3, dtype=torch.float64))
    small = SVDCompressor(rank=5).fit_transform(dense)
    ids = torch.tensor([3, 3, 4, 5])
    assert small(ids)[:2].abs().max() < 1e-12
    (small(ids) * random(4, 12)).sum().backward()
    table = small[0].weight
    assert torch.equal(table.grad[3], torch.zeros(5, dtype=torch.float64))
    assert (table.grad[[4, 5]].abs().sum(1) > 0).all()
    assert torch.equal(table.grad[6:], torch.zeros(24, 5, dtype=torch.float64))


def test_sparse_gradients_stay_sparse():
    small = exact().fit_transform(embedding(sparse=True))
    small(IDS).sum().backward()
    assert small[0].weight.grad.is_sparse
    assert not small[1].weight.grad.is_sparse


def test_max_norm_is_left_with_the_reason():
    compressor = exact()
    model = nn.ModuleList([nn.Embedding(30, 12, max_norm=1.0), nn.Embedding(30, 12)])
    before = model[0].weight.detach().clone()
    small = compressor.fit_transform(model)
    assert "max_norm" in compressor.plan_["0"].reason
    assert torch.equal(small[0].weight, before)
    assert torch.equal(model[0].weight, before)


def test_subclass_that_computes_something_else_is_left_with_the_reason():
    class Scaled(nn.Embedding):
        def forward(self, ids):
            return 3 * super().forward(ids)

    compressor = exact()
    compressor.fit(nn.ModuleList([Scaled(30, 12), nn.Embedding(30, 12)]))
    assert compressor.plan_["0"].reason == "Scaled rewrites forward of Embedding"


def test_embedding_bag_is_reported():
    compressor = exact()
    compressor.fit(nn.ModuleList([nn.EmbeddingBag(30, 12), nn.Embedding(30, 12)]))
    assert "weight (30, 12)" in compressor.plan_["0"].reason


def test_parametrized_embedding():
    dense = parametrizations.weight_norm(embedding())
    small = exact().fit_transform(dense)
    assert distance(small(IDS), dense(IDS)) < 1e-12


# --- tied to output heads ---------------------------------------------------------------


class Tied(nn.Module):
    """A language model in miniature: the head reads out with the embedding's weight."""

    def __init__(self, n_heads: int = 1, bias: bool = False):
        super().__init__()
        self.embed = nn.Embedding(30, 12, dtype=torch.float64)
        self.body = nn.Linear(12, 12, dtype=torch.float64)
        self.heads = nn.ModuleList(
            nn.Linear(12, 30, bias=bias, dtype=torch.float64) for _ in range(n_heads)
        )
        for head in self.heads:
            head.weight = self.embed.weight

    def forward(self, ids):
        hidden = torch.tanh(self.body(self.embed(ids)))
        return [head(hidden) for head in self.heads]


def tied(*arguments, **settings) -> Tied:
    return low_rank_(seeded(lambda: Tied(*arguments, **settings)))


@pytest.mark.parametrize(
    "compressor", [exact(), TuckerCompressor(rank=RANK)], ids=["svd", "tucker"]
)
@pytest.mark.parametrize("n_heads", [1, 2])
@pytest.mark.parametrize("bias", [True, False])
def test_tied_heads_share_the_factors(compressor, n_heads, bias):
    model = tied(n_heads, bias)
    small = compressor.fit_transform(model)
    assert distance(small(IDS), model(IDS)) < 1e-12
    table, widen = (stage.weight for stage in small.embed)
    for head in small.heads:
        assert isinstance(head, FactorizedLinear)
        assert head[0].weight is widen
        assert head[1].weight is table
    assert count_parameters(small) == compressor.n_parameters_out_
    row = compressor.plan_["embed"]
    assert (row.before, row.after) == (360, RANK * 42)
    assert row.shared_with == tuple(f"heads.{i}" for i in range(n_heads))
    assert "heads.0" not in compressor.ranks_


def test_tied_factors_are_trained_together():
    small = exact().fit_transform(tied())
    optimizer = torch.optim.SGD(small.parameters(), lr=0.1)
    small(IDS)[0].square().sum().backward()
    optimizer.step()
    assert torch.equal(small.embed.weight, small.heads[0].weight)


def test_inverse_ties_again():
    compressor = exact()
    model = tied(2, True)
    back = compressor.inverse_transform(compressor.fit_transform(model))
    assert back.embed.weight is back.heads[0].weight is back.heads[1].weight
    assert distance(back(IDS), model(IDS)) < 1e-12
    assert count_parameters(back) == count_parameters(model)


def test_transform_of_another_tied_model_and_of_one_on_the_meta_device():
    compressor = exact().fit(tied())
    other = low_rank_(seeded(Tied, seed=5))
    small = compressor.transform(other)
    assert distance(small(IDS), other(IDS)) < 1e-12
    with torch.device("meta"):  # moving a module there would untie it
        hollow = compressor.transform(Tied())
    assert hollow.embed[0].weight is hollow.heads[0][1].weight
    assert count_parameters(hollow) == compressor.n_parameters_out_


@pytest.mark.parametrize("left", ["embed", "heads.0", nn.Embedding])
def test_excluding_one_keeps_both_dense_and_tied(left):
    model = tied()
    compressor = exact(exclude=left)
    small = compressor.fit_transform(model)
    assert list(factorized(small)) == ["body"]
    assert small.embed.weight is small.heads[0].weight
    reasons = {compressor.plan_["embed"].reason, compressor.plan_["heads.0"].reason}
    assert "in exclude" in reasons
    assert any("not all of them can be compressed" in reason for reason in reasons)
    assert count_parameters(small) == compressor.n_parameters_out_


def test_layers_that_names_one_keeps_both_dense():
    compressor = exact(layers=["heads.*", "body"])
    small = compressor.fit_transform(tied())
    assert list(factorized(small)) == ["body"]
    assert "shares its weight among embed, heads.0" in compressor.plan_["heads.0"].reason


def test_tied_to_a_bare_parameter_of_another_module_stays_dense():
    class Bare(Tied):
        def __init__(self):
            super().__init__()
            self.table = self.embed.weight

    model = low_rank_(seeded(Bare))
    compressor = exact()
    small = compressor.fit_transform(model)
    assert list(factorized(small)) == ["body"]
    assert "(model)" in compressor.plan_["embed"].reason
    assert "not all of them can be compressed" in compressor.plan_["heads.0"].reason
    assert small.table is small.embed.weight is small.heads[0].weight
    assert count_parameters(small) == compressor.n_parameters_out_


def test_tied_to_a_layer_that_computes_something_else_stays_dense():
    class Scaled(nn.Linear):
        def forward(self, x):
            return 2 * super().forward(x)

    model = tied()
    model.heads.append(Scaled(12, 30, bias=False, dtype=torch.float64))
    model.heads[1].weight = model.embed.weight
    compressor = exact()
    small = compressor.fit_transform(model)
    assert list(factorized(small)) == ["body"]
    assert compressor.plan_["heads.1"].reason == "Scaled rewrites forward of Linear"
    assert small.embed.weight is small.heads[1].weight
    assert count_parameters(small) == compressor.n_parameters_out_


def test_one_embedding_used_twice():
    class Twice(nn.Module):
        def __init__(self):
            super().__init__()
            self.embed = nn.Embedding(30, 12, dtype=torch.float64)

        def forward(self, a, b):
            return self.embed(a) - self.embed(b)

    model = low_rank_(seeded(Twice))
    small = exact().fit_transform(model)
    ids = random(2, 3).argsort(-1)
    assert distance(small(ids, IDS), model(ids, IDS)) < 1e-12
