from __future__ import annotations

import copy
import threading

import pytest
import torch
from torch import nn

from skcompress import count_bytes, count_flops, count_parameters, measure_latency
from skcompress.metrics import _recurrent_flops, flop_counter


def test_shared_parameters_count_once():
    shared = nn.Linear(4, 4)
    assert count_parameters(nn.Sequential(shared, shared)) == 20
    tied = nn.ModuleDict({"a": nn.Linear(4, 4, bias=False), "b": nn.Linear(4, 4, bias=False)})
    tied["b"].weight = tied["a"].weight
    assert count_parameters(tied) == 16


def test_trainable_only():
    model = nn.Linear(3, 2)
    model.bias.requires_grad_(False)
    assert count_parameters(model, trainable_only=True) == 6


def test_bytes_include_buffers_and_follow_the_dtype():
    norm = nn.BatchNorm1d(4)
    assert count_bytes(norm) == 4 * (4 + 4 + 4 + 4) + 8
    assert count_bytes(nn.Linear(4, 4).half()) == 40


def test_bytes_of_views_count_once():
    whole, model = torch.zeros(64, 64), nn.Module()
    model.whole, model.part = nn.Parameter(whole), nn.Parameter(whole[:32])
    model.register_buffer("row", whole[0], persistent=False)
    model.alike = nn.Parameter(torch.zeros(1).expand(100))
    assert count_bytes(model) == 64 * 64 * 4 + 4


def test_bytes_of_tied_layers_without_values():
    with torch.device("meta"):
        one, other = nn.Linear(8, 8), nn.Linear(8, 8)
        other.weight = one.weight
        assert count_bytes(nn.Sequential(one, other, nn.LazyLinear(3))) == 4 * (64 + 8 + 8)


@pytest.mark.parametrize(
    ("convert", "expected"),
    [
        (torch.Tensor.to_sparse_coo, 10 * (8 + 8 + 4)),
        (lambda t: t.to_sparse_bsr((5, 5)), 2 * 25 * 4),
        (lambda t: t.to_sparse_csc(), 10 * 4),
    ],
)
def test_bytes_of_sparse_tensors(convert, expected):
    model = nn.Module()
    model.register_buffer("sparse", convert(torch.eye(10)))
    # Of compressed layouts, values, and at least a few indices.
    assert expected <= count_bytes(model) <= expected + 250
    assert count_bytes(model) != 400


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize(
    ("layer", "n_weights"),
    [(nn.Linear(64, 64), 64 * 64), (nn.LSTM(64, 32), 128 * 96), (nn.LSTMCell(64, 32), 128 * 96)],
)
def test_bytes_of_what_is_packed(layer, n_weights):
    """Three alike: each is counted, though they are unpacked in the same place."""
    model = nn.Sequential(*(copy.deepcopy(layer) for _ in range(3)))
    quantize = torch.ao.quantization.quantize_dynamic
    small = quantize(model, {type(layer)}, dtype=torch.qint8)
    assert 3 * n_weights < count_bytes(small) < 3 * (n_weights + 8 * 128 + 200)


def test_flops_of_a_convolution():
    conv = nn.Conv2d(3, 8, 3, bias=False)
    assert count_flops(conv, torch.zeros(2, 3, 6, 6)) == 2 * 2 * 8 * 4 * 4 * 27


def test_measuring_keeps_the_mode():
    model = nn.Sequential(nn.Linear(4, 4), nn.Dropout()).train()
    model[1].eval()
    assert measure_latency(model, (torch.zeros(1, 4),), min_run_time=0.01) > 0
    count_flops(model, torch.zeros(1, 4))
    assert model.training
    assert not model[1].training


@pytest.mark.parametrize("device", ["cpu", "meta"])
@pytest.mark.parametrize("packed", [False, True])
@pytest.mark.parametrize(
    ("cls", "settings"),
    [
        *((cls, {}) for cls in (nn.LSTM, nn.GRU, nn.RNN)),
        *((cls, {"bidirectional": True, "num_layers": 2}) for cls in (nn.LSTM, nn.GRU, nn.RNN)),
        (nn.LSTM, {"proj_size": 5}),
    ],
)
def test_flops_of_recurrent_layers(cls, settings, packed, device):
    """Every position meets every matrix once, whatever kernel computes it."""
    layer = cls(8, 16, batch_first=True, device=device, **settings)
    x = torch.zeros(3, 10, 8, device=device)
    n_positions = 30
    if packed:
        lengths = torch.tensor([10, 7, 3])
        x, n_positions = nn.utils.rnn.pack_padded_sequence(x, lengths, batch_first=True), 20
    n_weights = sum(p.numel() for p in layer.parameters() if p.dim() == 2)
    assert count_flops(layer, x) == 2 * n_positions * n_weights


def test_formulas_of_recurrent_kernels_of_gpus():
    """What `aten._cudnn_rnn` is given: positions first, biases among the weights."""
    weights = [(64, 8), (64, 16), (64,), (64,)]
    assert _recurrent_flops((10, 3, 8), weights, 2, None) == 2 * 30 * (64 * 8 + 64 * 16)
    assert _recurrent_flops((20, 8), weights, 2, None) == 2 * 20 * (64 * 8 + 64 * 16)


def test_flops_of_attention_whatever_kernel_computes_it():
    layer = nn.TransformerEncoderLayer(16, 2, 32, batch_first=True).eval()
    linear, attention = 2 * 15 * (4 * 16 * 16 + 2 * 16 * 32), 2 * 2 * 3 * 5 * 5 * 16
    x = torch.zeros(3, 5, 16)
    # The fused kernel of the whole layer, then that of the attention, then none.
    assert count_flops(layer, x) == linear + attention
    assert count_flops(layer.self_attn, x, x, x, need_weights=False) == 2 * 15 * 1024 + attention
    assert count_flops(layer.self_attn, x, x, x) == 2 * 15 * 1024 + attention
    assert torch.backends.mha.get_fastpath_enabled()


class Waiting(nn.Module):
    """Says that its forward has begun, and ends it when told to."""

    def __init__(self):
        super().__init__()
        self.inner = nn.Linear(4, 4)
        self.begun, self.told = threading.Event(), threading.Event()

    def forward(self, x):
        self.begun.set()
        assert self.told.wait(10)
        return self.inner(x)


def test_what_other_threads_compute_does_not_count():
    other, x = Waiting(), torch.zeros(1, 4)
    with flop_counter() as counter:
        thread = threading.Thread(target=other, args=(x,))
        thread.start()
        assert other.begun.wait(10)
        nn.Linear(4, 4)(x)
        other.told.set()
        thread.join()
    assert counter.get_total_flops() == 32
    assert "Waiting" not in counter.get_flop_counts()


@pytest.mark.parametrize("enabled", [True, False])
def test_threads_that_count_leave_the_fused_kernels_as_they_were(enabled):
    before = torch.backends.mha.get_fastpath_enabled()
    torch.backends.mha.set_fastpath_enabled(enabled)
    try:
        other = Waiting()
        thread = threading.Thread(target=count_flops, args=(other, torch.zeros(1, 4)))
        with flop_counter():
            thread.start()
            assert other.begun.wait(10)
        # The first to come is gone, the second still counts.
        assert not torch.backends.mha.get_fastpath_enabled()
        other.told.set()
        thread.join()
        assert torch.backends.mha.get_fastpath_enabled() == enabled
    finally:
        torch.backends.mha.set_fastpath_enabled(before)
