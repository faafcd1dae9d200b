from __future__ import annotations

import pytest
import torch
from models import distance, exact, low_rank_, random, seeded
from torch import nn
from torch.nn.utils import parametrizations, weight_norm
from torch.nn.utils.rnn import pack_padded_sequence, pack_sequence

from skcompress import SVDCompressor, count_parameters
from skcompress.layers.recurrent import FactorizedRecurrent

CLASSES = {
    "lstm": nn.LSTM,
    "gru": nn.GRU,
    "tanh": nn.RNN,
    "relu": lambda *a, **k: nn.RNN(*a, nonlinearity="relu", **k),
}
every_class = pytest.mark.parametrize("cls", CLASSES.values(), ids=CLASSES.keys())
# Two layers each, and everything that may differ between them.
SETTINGS = [
    {},
    {"bias": False},
    {"batch_first": True},
    {"bidirectional": True},
    {"num_layers": 3, "bidirectional": True, "batch_first": True, "dropout": 0.5},
]


def build(cls, **settings) -> nn.RNNBase:
    settings = {"num_layers": 2, **settings}
    return low_rank_(seeded(lambda: cls(10, 12, dtype=torch.float64, **settings))).eval()


def start(layer: nn.RNNBase, *batch: int):
    """A hidden state to start from."""
    n = layer.num_layers * (1 + layer.bidirectional)
    h = random(n, *batch, layer.proj_size or layer.hidden_size, seed=3)
    c = random(n, *batch, layer.hidden_size, seed=4)
    return (h, c) if layer.mode == "LSTM" else h


@every_class
@pytest.mark.parametrize("settings", SETTINGS, ids=str)
def test_settings(cls, settings):
    dense = build(cls, **settings)
    compressor = exact()
    small = compressor.fit_transform(dense)
    assert isinstance(small, FactorizedRecurrent)
    assert all(row.reason is None for row in compressor.plan_)
    assert count_parameters(small) == compressor.n_parameters_out_ < count_parameters(dense)
    x = random(4, 4, 10)
    assert distance(small(x), dense(x)) < 1e-12
    assert distance(small(x, start(dense, 4)), dense(x, start(dense, 4))) < 1e-12
    assert distance(small(x[0]), dense(x[0])) < 1e-12
    assert distance(small(x[0], start(dense)), dense(x[0], start(dense))) < 1e-12


@pytest.mark.parametrize("bidirectional", [False, True])
def test_lstm_with_projections(bidirectional):
    dense = build(nn.LSTM, proj_size=6, bidirectional=bidirectional)
    compressor = exact()
    small = compressor.fit_transform(dense)
    assert "weight_hr_l1" in compressor.ranks_
    x = random(5, 3, 10)
    assert distance(small(x), dense(x)) < 1e-12
    assert distance(small(x, start(dense, 3)), dense(x, start(dense, 3))) < 1e-12
    back = compressor.inverse_transform(small)
    assert repr(back) == repr(dense)
    assert distance(back(x), dense(x)) < 1e-12


@every_class
@pytest.mark.parametrize("is_sorted", [True, False])
def test_packed_sequences(cls, is_sorted):
    dense = build(cls, bidirectional=True)
    small = exact().fit_transform(dense)
    lengths = [5, 4, 2] if is_sorted else [2, 5, 4]
    packed = pack_sequence([random(n, 10, seed=n) for n in lengths], enforce_sorted=is_sorted)
    assert distance(small(packed), dense(packed)) < 1e-12
    hidden = start(dense, 3)
    assert distance(small(packed, hidden), dense(packed, hidden)) < 1e-12
    padded = pack_padded_sequence(random(5, 3, 10), lengths, enforce_sorted=is_sorted)
    assert distance(small(padded), dense(padded)) < 1e-12


@every_class
@pytest.mark.parametrize(
    "layers", [["weight_ih_l0"], ["weight_hh_l1"], ["weight_ih_*"]], ids=lambda names: names[0]
)
def test_only_some_weights(cls, layers):
    dense = build(cls)
    compressor = exact(layers=layers)
    small = compressor.fit_transform(dense)
    factorized = set(compressor.ranks_)
    kept = {name for name, _ in small.named_parameters() if name.startswith("weight")}
    assert kept | factorized == {n for n, _ in dense.named_parameters() if n.startswith("weight")}
    assert not kept & factorized
    assert count_parameters(small) == compressor.n_parameters_out_
    x = random(5, 3, 10)
    assert distance(small(x), dense(x)) < 1e-12
    assert distance(compressor.inverse_transform(small)(x), dense(x)) < 1e-12


def test_answers_as_the_original():
    dense = build(nn.LSTM, bidirectional=True, batch_first=True)
    small = exact(layers="weight_ih_*").fit_transform(dense)
    for name in ("mode", "input_size", "hidden_size", "num_layers", "bias", "batch_first",
                 "dropout", "bidirectional", "proj_size"):  # fmt: skip
        assert getattr(small, name) == getattr(dense, name), name
    for name, _ in dense.named_parameters():
        assert distance(getattr(small, name), getattr(dense, name)) < 1e-12, name
    assert distance(small.all_weights, dense.all_weights) < 1e-12
    small.flatten_parameters()
    with pytest.raises(AttributeError, match="no_such_thing"):
        _ = small.no_such_thing


def test_truncation_computes_with_the_weights_that_it_reports():
    dense = seeded(lambda: nn.GRU(10, 12, dtype=torch.float64))
    small = SVDCompressor(rank=3).fit_transform(dense)
    reported = nn.GRU(10, 12, dtype=torch.float64)
    with torch.no_grad():
        for name, parameter in reported.named_parameters():
            parameter.copy_(getattr(small, name))
    x = random(5, 3, 10)
    assert distance(small(x), reported(x)) < 1e-12
    assert distance(small(x), dense(x)) > 1e-3


def test_dropout_between_layers_in_training_mode_only():
    dense = build(nn.LSTM, dropout=0.5)
    small = exact().fit_transform(dense)
    x = random(5, 3, 10)

    def run(module):
        return seeded(lambda: module(x)[0])

    assert distance(run(small), run(dense)) < 1e-12
    small.train()
    dense.train()
    assert distance(run(small), run(dense)) < 1e-12
    assert distance(run(small), small.eval()(x)[0]) > 0.01


def test_errors_are_those_of_torch():
    small = exact().fit_transform(build(nn.LSTM))
    with pytest.raises(RuntimeError, match=r"input\.size\(-1\) must be equal to input_size"):
        small(random(5, 3, 11))
    with pytest.raises(RuntimeError, match="Expected hidden"):
        small(random(5, 3, 10), (random(1, 3, 12), random(1, 3, 12)))


def test_gradients_of_the_factors_are_those_of_the_product():
    dense = build(nn.GRU, num_layers=1)
    small = exact().fit_transform(dense)
    x = random(5, 3, 10)
    for module in (small, dense):
        module(x)[0].square().sum().backward()
    first, second = small.chains["weight_hh_l0"]
    gradient = dense.weight_hh_l0.grad
    assert distance(first.weight.grad, second.weight.mT @ gradient) < 1e-10
    assert distance(second.weight.grad, gradient @ first.weight.mT) < 1e-10


@pytest.mark.filterwarnings("ignore:.*weight_norm.*deprecated")
@pytest.mark.parametrize("norm", [weight_norm, parametrizations.weight_norm])
def test_parametrized_weights_are_left_with_the_reason(norm):
    model = nn.ModuleList([norm(nn.LSTM(10, 12), "weight_hh_l0"), nn.Linear(16, 16)])
    compressor = exact()
    small = compressor.fit_transform(model)
    assert isinstance(small[0], nn.LSTM)
    assert "parametrized" in compressor.plan_["0"].reason
    assert count_parameters(small) == compressor.n_parameters_out_


def test_spectral_norm_in_training_mode_is_untouched():
    model = nn.ModuleList(
        [parametrizations.spectral_norm(nn.LSTM(10, 12), "weight_hh_l0"), nn.Linear(16, 16)]
    ).train()
    before = {key: value.clone() for key, value in model.state_dict().items()}
    exact().fit_transform(model)
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_weights_shared_within_a_layer_stay_shared():
    dense = build(nn.GRU)
    dense.weight_hh_l1 = dense.weight_hh_l0
    compressor = exact()
    small = compressor.fit_transform(dense)
    assert set(compressor.ranks_) == {"weight_ih_l0", "weight_ih_l1"}
    assert small.weight_hh_l0 is small.weight_hh_l1
    assert "shares its weight" in compressor.plan_["weight_hh_l0"].reason
    assert count_parameters(small) == compressor.n_parameters_out_
    x = random(5, 3, 10)
    assert distance(small(x), dense(x)) < 1e-12
    back = compressor.inverse_transform(small)
    assert back.weight_hh_l0 is back.weight_hh_l1


def test_weights_shared_between_layers_stay_shared():
    model = nn.ModuleList([build(nn.GRU, num_layers=1), build(nn.GRU, num_layers=1)])
    model[1].weight_hh_l0 = model[0].weight_hh_l0
    compressor = exact()
    small = compressor.fit_transform(model)
    assert small[0].weight_hh_l0 is small[1].weight_hh_l0
    assert "shares its weight among 0, 1" in compressor.plan_["0.weight_hh_l0"].reason
    assert count_parameters(small) == compressor.n_parameters_out_


@pytest.mark.parametrize("cls", [nn.LSTMCell, nn.GRUCell, nn.RNNCell])
def test_cells_are_reported(cls):
    compressor = exact()
    compressor.fit(nn.ModuleList([cls(10, 12), nn.Linear(16, 16)]))
    assert "weight_ih" in compressor.plan_["0"].reason


def test_subclass_that_computes_something_else_is_left_with_the_reason():
    class Residual(nn.GRU):
        def forward(self, x, hx=None):
            y, h = super().forward(x, hx)
            return x + y, h

    compressor = exact()
    compressor.fit(nn.ModuleList([Residual(12, 12), nn.Linear(16, 16)]))
    assert compressor.plan_["0"].reason == "Residual rewrites forward of GRU"
