"""Inputs and previous hidden states of recurrent layers, against loops over the steps."""

from __future__ import annotations

from itertools import product

import pytest
import torch
from models import random, seeded
from statistics_cases import Listed, assert_moments, statistics
from torch import nn
from torch.nn.utils.rnn import pack_padded_sequence

SIZE, HIDDEN, STEPS, BATCH = 5, 6, 4, 3

LAYERS = {
    "lstm": (nn.LSTM, {}),
    "deep lstm in both directions": (nn.LSTM, {"num_layers": 2, "bidirectional": True}),
    "projected lstm": (nn.LSTM, {"num_layers": 2, "bidirectional": True, "proj_size": 3}),
    "gru without bias": (nn.GRU, {"bias": False, "num_layers": 2}),
    "gru, batch first, both directions": (nn.GRU, {"batch_first": True, "bidirectional": True}),
    "rnn": (nn.RNN, {"nonlinearity": "relu", "num_layers": 2}),
}


def build(name):
    base, settings = LAYERS[name]
    return seeded(lambda: base(SIZE, HIDDEN, **settings)).double().eval()


def step(layer, suffix, x, h, c):
    """One step of torch's equations: raw and projected hidden state, and cell state."""

    def gates(part, value):
        out = value @ getattr(layer, f"weight_{part}{suffix}").mT
        return out + getattr(layer, f"bias_{part}{suffix}") if layer.bias else out

    a, b = gates("ih", x), gates("hh", h)
    if layer.mode == "LSTM":
        i, f, g, o = (a + b).chunk(4, -1)
        c = f.sigmoid() * c + i.sigmoid() * g.tanh()
        raw = o.sigmoid() * c.tanh()
        return raw, raw @ getattr(layer, f"weight_hr{suffix}").mT if layer.proj_size else raw, c
    if layer.mode == "GRU":
        (ar, az, an), (br, bz, bn) = a.chunk(3, -1), b.chunk(3, -1)
        z = (az + bz).sigmoid()
        raw = (1 - z) * (an + (ar + br).sigmoid() * bn).tanh() + z * h
    else:
        raw = (a + b).relu()
    return raw, raw, c


def by_loop(layer, sequences, h0, c0):
    """Inputs of every weight, one sequence (steps, in) after the other; and the outputs."""
    found: dict[str, list] = {}
    outputs = []
    n_directions = 2 if layer.bidirectional else 1
    for number, sequence in enumerate(sequences):
        inputs = sequence
        for depth in range(layer.num_layers):
            halves = []
            for direction in range(n_directions):
                suffix = f"_l{depth}" + ("_reverse" if direction else "")
                which = depth * n_directions + direction
                h, c = h0[which, number], c0[which, number]
                order = range(len(inputs))
                states = {}
                for t in reversed(order) if direction else order:
                    found.setdefault(f"weight_ih{suffix}", []).append(inputs[t])
                    found.setdefault(f"weight_hh{suffix}", []).append(h)
                    raw, h, c = step(layer, suffix, inputs[t], h, c)
                    if getattr(layer, "proj_size", 0):
                        found.setdefault(f"weight_hr{suffix}", []).append(raw)
                    states[t] = h
                halves.append(torch.stack([states[t] for t in order]))
            inputs = torch.cat(halves, -1)
        outputs.append(inputs)
    return {name: torch.stack(rows) for name, rows in found.items()}, outputs


def initial(layer, batch=BATCH):
    count = layer.num_layers * (2 if layer.bidirectional else 1)
    h = random(count, batch, layer.proj_size or HIDDEN, seed=7)
    return h, random(count, batch, HIDDEN, seed=8)


@pytest.mark.parametrize(
    ("name", "form", "start"), list(product(LAYERS, ("padded", "packed", "single"), (False, True)))
)
@torch.no_grad()
def test_inputs_of_every_weight(name, form, start):
    layer = build(name)
    lengths = [STEPS] * BATCH if form == "padded" else [2, STEPS, 1]
    x = random(STEPS, BATCH, SIZE)
    h0, c0 = initial(layer)
    if form == "single":
        x, h0, c0, lengths = x[:, 0], h0[:, :1], c0[:, :1], [STEPS]
        given, sequences = x, [x]
        hx = (h0[:, 0], c0[:, 0])
    else:
        sequences = [x[:n, b] for b, n in enumerate(lengths)]
        given = x.transpose(0, 1) if layer.batch_first else x
        if form == "packed":
            given = pack_padded_sequence(x, torch.tensor(lengths), enforce_sorted=False)
        hx = (h0, c0)
    if not start:
        h0, c0 = torch.zeros_like(h0), torch.zeros_like(c0)
        hx = None
    elif layer.mode != "LSTM":
        hx = hx[0]
    expected, outputs = by_loop(layer, sequences, h0, c0)
    if form == "single":
        torch.testing.assert_close(layer(given, hx)[0], outputs[0])
    if form == "packed" and not start:
        with pytest.raises((RuntimeError, ValueError), match=r"batch 1 \(counted from 0\)"):
            statistics(layer, [given, pack_padded_sequence(x[..., :2], torch.ones(BATCH))])
    found = statistics(layer, Listed(layer, [(given, hx)]))
    assert set(found) == set(expected)
    for weight, rows in expected.items():
        assert_moments(found[weight], rows, tolerance=1e-9)
