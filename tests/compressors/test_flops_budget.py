"""`cost="flops"`: budgets of floating-point operations, against torch's own counter."""

from __future__ import annotations

import copy

import pytest
import torch
from pairwise import pairwise
from sklearn.base import clone
from sklearn.utils._param_validation import InvalidParameterError
from torch import nn
from torch.nn.utils import parametrizations, parametrize

from skcompress import (
    LowRankCompressor,
    SVDCompressor,
    TuckerCompressor,
    count_flops,
    count_parameters,
)
from skcompress.decompositions.spatial_svd import SpatialSVD
from skcompress.decompositions.svd import SVD
from skcompress.errors import (
    BudgetError,
    ForwardError,
    MetaWeightError,
    MissingDataError,
    OneShotDataError,
    UnknownNameError,
)
from skcompress.metrics import flop_counter
from skcompress.protocols import Decomposition, Stage


@pytest.fixture(autouse=True)
def _seed():
    with torch.random.fork_rng():
        torch.manual_seed(0)
        yield


class Residual(nn.Module):
    """Two strided convolutions with a 1 x 1 way round them, as in a ResNet."""

    def __init__(self, width, out, stride):
        super().__init__()
        self.first = nn.Conv2d(width, out, 3, stride, 1, bias=False)
        self.norm = nn.BatchNorm2d(out)
        self.second = nn.Conv2d(out, out, 3, padding=1, bias=False)
        self.skip = nn.Conv2d(width, out, 1, stride, bias=False)

    def forward(self, x):
        return self.second(self.norm(self.first(x)).relu()).add(self.skip(x)).relu()


def resnet():
    return nn.Sequential(
        nn.Conv2d(3, 16, 3, padding=1), Residual(16, 24, 2), Residual(24, 32, 2),
        nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(32, 10),
    )  # fmt: skip


def encoder():
    layer = nn.TransformerEncoderLayer(24, 4, 48, batch_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


def convolutions(**settings):
    return nn.Sequential(
        nn.Conv2d(4, 24, 3, padding=1), nn.ReLU(), nn.Conv2d(24, 32, (3, 5), **settings)
    )


# Name: model, its first batch.
NETWORKS = {
    "linear": lambda: (nn.Sequential(nn.Linear(20, 40), nn.ReLU(), nn.Linear(40, 30)), (5, 7, 20)),
    "strided": lambda: (convolutions(stride=2, padding=(1, 3)), (3, 4, 13, 11)),
    "anisotropic": lambda: (convolutions(stride=(1, 2), dilation=(2, 1)), (3, 4, 14, 15)),
    "same": lambda: (convolutions(padding="same", padding_mode="circular"), (2, 4, 9, 8)),
    "grouped": lambda: (
        nn.Sequential(nn.Conv2d(8, 32, 3, 2, groups=2), nn.Conv2d(32, 48, 3, groups=4)),
        (3, 8, 15, 15),
    ),
    "transposed": lambda: (
        nn.Sequential(
            nn.ConvTranspose2d(16, 24, 4, 2, 1),
            nn.ConvTranspose2d(24, 16, 3, 2, 1, output_padding=1, groups=2),
        ),
        (2, 16, 6, 5),
    ),
    "conv1d": lambda: (nn.Sequential(nn.Conv1d(12, 24, 5, 2), nn.Conv1d(24, 24, 3)), (4, 12, 40)),
    "conv3d": lambda: (
        nn.Sequential(nn.Conv3d(6, 16, 3, (1, 2, 1)), nn.Conv3d(16, 16, 3)),
        (2, 6, 8, 11, 9),
    ),
    "resnet": lambda: (resnet(), (4, 3, 20, 20)),
    "encoder": lambda: (encoder(), (3, 6, 24)),
    "weight norm": lambda: (
        nn.Sequential(parametrizations.weight_norm(nn.Conv2d(6, 20, 3)), nn.Conv2d(20, 20, 3)),
        (2, 6, 9, 9),
    ),
}


def network(name):
    model, shape = NETWORKS[name]()
    return model.eval(), torch.randn(shape)


WAYS = {
    "auto": SVDCompressor(),
    "output": SVDCompressor(scheme="output"),
    "input": SVDCompressor(scheme="input"),
    "spatial": SVDCompressor(scheme="spatial"),
    "tucker": TuckerCompressor(),
    "competing": LowRankCompressor(("svd", SpatialSVD(), "tucker")),
}


@pairwise(name=list(NETWORKS), way=list(WAYS), pivot=[False, True], rank=[0.6, 3])
def test_the_count_is_that_of_torch(name, way, pivot, rank):
    model, batch = network(name)
    settings = {"cost": "flops", "rank": rank, "metric": "weights", "pivot": pivot}
    compressor = clone(WAYS[way]).set_params(**settings)
    small = compressor.fit_transform(model, batch)
    before, after = count_flops(model, batch), count_flops(small, batch)
    assert compressor.n_flops_in_ == before
    assert compressor.n_flops_out_ == after < before
    assert count_parameters(small) == compressor.n_parameters_out_ <= count_parameters(model)
    if rank == 0.6:
        assert after <= 0.6 * before
        # A budget is there to be used: the next option up would be over it.
        assert after > 0.4 * before


@pytest.mark.parametrize("name", ["strided", "grouped", "transposed", "resnet", "encoder"])
@pytest.mark.parametrize("compressor", [SVDCompressor, TuckerCompressor])
def test_the_count_with_data_and_pivots_is_that_of_torch(compressor, name):
    model, batch = network(name)
    fitted = compressor(0.6, cost="flops", pivot=True)
    small = fitted.fit_transform(model, batch)
    assert fitted.n_flops_out_ == count_flops(small, batch) <= 0.6 * count_flops(model, batch)


def test_pivots_buy_larger_ranks_for_the_same_flops():
    model, batch = network("strided")
    ranks = [
        SVDCompressor(
            0.6, cost="flops", pivot=pivot, scheme="output", metric="weights", allocation="uniform"
        )
        .fit(model, batch)
        .ranks_
        for pivot in (False, True)
    ]
    assert ranks[0].keys() == ranks[1].keys()
    assert all(ranks[1][name] > rank for name, rank in ranks[0].items())


@pytest.mark.parametrize("name", ["strided", "grouped", "transposed", "resnet", "encoder"])
def test_uniform_keeps_the_share_in_every_layer(name):
    model, batch = network(name)
    # torch counts the projections of an attention as one with it.
    exclude = "*_proj" if name == "encoder" else ()
    compressor = SVDCompressor(0.6, cost="flops", allocation="uniform", exclude=exclude)
    compressor.fit(model, batch)
    small = compressor.transform(model)
    before, after = by_layer(model, batch), by_layer(small, batch)
    assert compressor.ranks_
    for layer in compressor.ranks_:
        assert 0 < after[layer] <= 0.6 * before[layer]


def by_layer(model, batch):
    """FLOPs of each layer by its name."""
    with torch.no_grad(), flop_counter() as counter:
        model(batch)
    root = type(model).__name__
    return {
        name.removeprefix(f"{root}."): sum(found.values())
        for name, found in counter.get_flop_counts().items()
    }


@pytest.mark.parametrize("allocation", ["energy", "auto"])
def test_other_allocations_shrink_in_both(allocation):
    model, batch = network("resnet")
    compressor = SVDCompressor(0.8, cost="flops", allocation=allocation).fit(model, batch)
    assert compressor.n_flops_out_ == count_flops(compressor.transform(model), batch)
    assert compressor.n_flops_out_ < compressor.n_flops_in_
    assert compressor.n_parameters_out_ < compressor.n_parameters_in_


def test_it_is_another_budget_than_parameters():
    model, batch = network("resnet")
    by_flops = SVDCompressor(0.5, cost="flops", metric="weights").fit(model, batch)
    by_numbers = SVDCompressor(0.5, metric="weights").fit(model, batch)
    assert by_flops.plan_ != by_numbers.plan_
    assert not hasattr(by_numbers, "n_flops_in_")


@pytest.mark.parametrize("scheme", ["output", "input", "spatial"])
def test_what_is_not_smaller_and_faster_stays_dense(scheme):
    # Stride 4: what comes before the stride works at many positions, so that factors that
    # are smaller than the weight may well be slower. Dense: 9216 numbers, each at 64 positions;
    # "output" needs 64 * 320 multiplications a rank, "input" 1089 * 32 + 64 * 288, "spatial"
    # 264 * 96 + 64 * 96.
    model = nn.Sequential(nn.Conv2d(32, 32, 3, stride=4)).eval()
    batch = torch.randn(2, 32, 33, 33)
    slower = []
    for rank in (4, 12, 16, 20, 32):
        compressor = SVDCompressor(rank, cost="flops", scheme=scheme, metric="weights")
        small = compressor.fit_transform(model, batch)
        assert count_flops(small, batch) == compressor.n_flops_out_ <= compressor.n_flops_in_
        if not compressor.ranks_:
            reason = compressor.plan_["0"].reason
            assert reason == f"rank {rank} would not make it smaller and faster"
            slower.append(rank)
    smaller = SVDCompressor(16, scheme=scheme).fit(model).ranks_
    assert smaller == {"0": 16}
    assert slower == {"output": [32], "input": [12, 16, 20, 32], "spatial": [20, 32]}[scheme]


def test_what_is_faster_but_larger_is_not_on_offer():
    # Padding makes nine positions of one: the 1 x 1 stage of "input" works at that one.
    model = nn.Sequential(nn.Conv2d(32, 4, 3, padding=2)).eval()
    batch = torch.randn(2, 32, 1, 1)
    settings = {"scheme": "input", "cost": "flops", "metric": "weights"}
    assert SVDCompressor(16, **settings).fit(model, batch).ranks_ == {"0": 16}
    assert SVDCompressor(20, **settings).fit(model, batch).ranks_ == {}
    for allocation in ("global", "uniform", "energy"):
        compressor = SVDCompressor(0.999, allocation=allocation, **settings).fit(model, batch)
        assert compressor.n_parameters_out_ <= compressor.n_parameters_in_


class Several(nn.Module):
    """A layer called three times, on two sizes; one never."""

    def __init__(self):
        super().__init__()
        self.often = nn.Linear(24, 24)
        self.never = nn.Linear(24, 24)
        self.once = nn.Linear(24, 24)

    def forward(self, x):
        return self.once(self.often(self.often(x)) + self.often(x[:, :1]))


def test_calls_add_up_and_unreached_layers_stay():
    model, batch = Several().eval(), torch.randn(4, 6, 24)
    compressor = SVDCompressor(4, cost="flops", metric="weights").fit(model, batch)
    assert compressor.ranks_ == {"often": 4, "once": 4}
    assert "first batch" in compressor.plan_["never"].reason
    per_call = 2 * (24 * 24 - 4 * 48)
    assert compressor.n_flops_in_ - compressor.n_flops_out_ == per_call * (3 * 24 + 4)
    assert compressor.n_flops_out_ == count_flops(compressor.transform(model), batch)


class Tied(nn.Module):
    def __init__(self, head):
        super().__init__()
        self.embedding = nn.Embedding(50, 16)
        self.head = nn.Linear(16, 50, bias=False)
        if head:
            self.head.weight = self.embedding.weight

    def forward(self, x):
        return self.head(self.embedding(x))


def test_a_tied_head_counts_with_its_embedding():
    model, batch = Tied(True), torch.arange(20).view(4, 5)
    compressor = SVDCompressor(5, cost="flops", metric="weights").fit(model, batch)
    saved = compressor.n_flops_in_ - compressor.n_flops_out_
    # The head saves, the embedding's way up from rank 5 costs.
    assert saved == 20 * 2 * (50 * 16 - 5 * 66 - 5 * 16)
    assert compressor.n_flops_out_ == count_flops(compressor.transform(model), batch)


def test_each_of_tied_layers_counts():
    model = nn.Sequential(nn.Linear(24, 24), nn.ReLU(), nn.Linear(24, 24)).eval()
    model[2].weight = model[0].weight
    batch = torch.randn(5, 24)
    compressor = SVDCompressor(4, cost="flops", metric="weights").fit(model, batch)
    saved = compressor.n_flops_in_ - compressor.n_flops_out_
    assert saved == 2 * 2 * 5 * (24 * 24 - 4 * 48)
    assert compressor.n_flops_out_ == count_flops(compressor.transform(model), batch)


def test_look_ups_and_recurrent_layers_stay_dense():
    class Network(Tied):
        def __init__(self):
            super().__init__(False)
            self.lstm = nn.LSTM(16, 16, batch_first=True)

        def forward(self, x):
            return self.head(self.lstm(self.embedding(x))[0])

    model, batch = Network(), torch.arange(20).view(4, 5)
    compressor = SVDCompressor(0.95, cost="flops").fit(model, batch)
    assert list(compressor.ranks_) == ["head"]
    assert compressor.plan_["embedding"].reason == "it takes no FLOPs"
    assert "multiplied out" in compressor.plan_["lstm.weight_ih_l0"].reason
    assert compressor.n_flops_out_ == count_flops(compressor.transform(model), batch)


def test_part_of_an_attention():
    model, batch = network("encoder")
    settings = {"exclude": ["*.q_proj", "*.linear1"], "metric": "weights"}
    compressor = SVDCompressor(4, cost="flops", **settings).fit(model, batch)
    assert "layers.0.self_attn.k_proj" in compressor.ranks_
    assert "layers.0.self_attn.q_proj" not in compressor.ranks_
    assert compressor.n_flops_out_ == count_flops(compressor.transform(model), batch)


def test_a_dict_of_ranks_shares_the_flops_of_what_it_matches():
    model, batch = network("resnet")
    compressor = SVDCompressor({"1": 0.5, "2.second": 4}, cost="flops").fit(model, batch)
    small = compressor.transform(model)
    assert compressor.n_flops_out_ == count_flops(small, batch)
    within = [count_flops(m[1], batch.new_zeros(4, 16, 20, 20)) for m in (model, small)]
    assert within[1] <= 0.5 * within[0]
    assert compressor.ranks_["2.second"] == 4


def test_it_is_the_first_batch_that_counts():
    model, batch = network("resnet")
    loader = [batch, torch.randn(2, 3, 32, 32)]
    compressor = SVDCompressor(0.5, cost="flops", metric="weights").fit(model, loader)
    assert compressor.n_flops_in_ == count_flops(model, batch)


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_precisions(dtype):
    model, batch = network("strided")
    model, batch = model.to(dtype), batch.to(dtype)
    compressor = SVDCompressor(0.5, cost="flops", metric="weights").fit(model, batch)
    assert compressor.n_flops_out_ == count_flops(compressor.transform(model), batch)


def test_under_autocast():
    class Cast(nn.Module):
        def __init__(self):
            super().__init__()
            self.layers = nn.Sequential(nn.Linear(24, 24), nn.Linear(24, 24))

        def forward(self, x):
            with torch.autocast("cpu", torch.bfloat16):
                return self.layers(x)

    model, batch = Cast().eval(), torch.randn(8, 24)
    compressor = SVDCompressor(0.5, cost="flops", metric="weights").fit(model, batch)
    assert compressor.n_flops_out_ == count_flops(compressor.transform(model), batch)


class Adapted(nn.Module):
    """W + B A, computed at every call."""

    def __init__(self, size, rank):
        super().__init__()
        self.up = nn.Parameter(torch.randn(size, rank))
        self.down = nn.Parameter(torch.randn(rank, size))

    def forward(self, weight):
        return weight + self.up @ self.down


def test_what_a_parametrization_computes_goes_with_its_weight():
    model, batch = nn.Sequential(nn.Linear(32, 32), nn.Linear(32, 32)).eval(), torch.randn(3, 32)
    parametrize.register_parametrization(model[0], "weight", Adapted(32, 2))
    compressor = SVDCompressor(0.5, cost="flops", metric="weights").fit(model, batch)
    assert compressor.n_flops_in_ == 2 * 2 * 3 * 32 * 32 + 2 * 32 * 32 * 2
    assert "0" in compressor.ranks_
    assert compressor.n_flops_out_ == count_flops(compressor.transform(model), batch)


class Either(Decomposition):
    """A chain that has one stage more from rank 5 on, as some plugins do."""

    def factorize(self, weight):
        return SVD().factorize(weight)

    def stages(self, shape, rank):
        first, second = SVD().stages(shape, rank)
        square = (Stage((rank, rank, *(1,) * (len(shape) - 2))),) if rank >= 5 else ()
        return (first, *square, second)

    @property
    def scheme(self):
        return "output"


def test_chains_of_different_forms_in_one_curve():
    model, batch = nn.Sequential(nn.Conv2d(16, 32, 3, stride=2)).eval(), torch.randn(2, 16, 13, 13)
    positions = 2 * 2 * 6 * 6
    for rank in (4, 6):
        compressor = LowRankCompressor(Either(), rank, cost="flops", metric="weights")
        compressor.fit(model, batch)
        numbers = rank * (16 * 9 + 32) + (rank * rank if rank >= 5 else 0)
        assert compressor.n_flops_out_ == positions * numbers


def test_the_report_says_it():
    model = nn.Sequential(nn.Linear(1000, 1000), nn.Linear(1000, 600))
    compressor = SVDCompressor(0.5, cost="flops", metric="weights").fit(
        model, torch.zeros(64, 1000)
    )
    share = compressor.n_flops_out_ / compressor.n_flops_in_
    after = compressor.n_flops_out_ / 1e6
    assert f"204.80 M -> {after:.2f} M FLOPs ({share:.1%} kept)" in str(compressor.report_)
    assert "FLOPs" in compressor.report_._repr_html_()
    compressor.set_params(cost="parameters").fit(model)
    assert not hasattr(compressor, "n_flops_in_")
    assert "FLOPs" not in str(compressor.report_)


def test_warm_start_moves_between_costs():
    model, batch = network("resnet")
    compressor = SVDCompressor(0.5, warm_start=True).fit(model, batch)
    for cost in ("flops", "parameters"):
        compressor.set_params(cost=cost).fit(model, batch)
        fresh = SVDCompressor(0.5, cost=cost).fit(model, batch)
        assert compressor.plan_ == fresh.plan_


def test_the_model_stays_as_it_was():
    model, batch = network("encoder")
    model.train()
    calls = []
    hook = model.layers[0].linear1.register_forward_hook(lambda *_: calls.append(1))
    state, before = torch.get_rng_state(), copy.deepcopy(model.state_dict())
    SVDCompressor(0.5, cost="flops", metric="weights").fit(model, batch)
    hook.remove()
    assert torch.equal(state, torch.get_rng_state())
    assert model.training
    assert not any(m._forward_hooks or m._forward_pre_hooks for m in model.modules())
    for name, value in model.state_dict().items():
        assert torch.equal(value, before[name])
    assert torch.backends.mha.get_fastpath_enabled()


def test_bad_input():
    model, batch = network("linear")
    with pytest.raises(UnknownNameError, match="'seconds'; known: 'bytes', 'flops', 'parameters'"):
        SVDCompressor(cost="seconds").fit(model, batch)
    with pytest.raises(InvalidParameterError, match="'cost' parameter of SVDCompressor"):
        SVDCompressor(cost=None).fit(model, batch)
    with pytest.raises(MissingDataError, match="cost='flops' of SVDCompressor needs data"):
        SVDCompressor(cost="flops").fit(model)
    with pytest.raises(OneShotDataError):
        SVDCompressor(cost="flops", metric="weights").fit(model, iter([batch]))
    with pytest.raises(BudgetError, match=r"keeps at least 0\.\d+ of its FLOPs"):
        SVDCompressor(0.01, cost="flops").fit(model, batch)
    with pytest.raises(BudgetError, match="layer '2' keeps at least"):
        SVDCompressor(0.01, cost="flops", allocation="uniform").fit(model, batch)
    with pytest.raises(MetaWeightError):
        SVDCompressor(cost="flops").fit(copy.deepcopy(model).to("meta"), batch)
    with pytest.raises(ForwardError, match="batch 0"):
        SVDCompressor(cost="flops", metric="weights").fit(model, torch.zeros(4, 19))
    assert torch.backends.mha.get_fastpath_enabled()
