"""The layers of an LSTM, GRU or RNN one by one, as they run on their own states."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import nn

from ..protocols import Preactivation, Recurrence, Unrolled, rows
from .hidden_states import Sequences, hidden_states, inputs_at, suffix_of


class LayerRecurrence(Recurrence):
    """One layer of a recurrent module, in all directions.

    module : the whole, whose values do not count; base : its class in torch.nn
    """

    def __init__(self, module: Any, base: type[nn.RNNBase], depth: int):
        self._base, self._depth = base, depth
        found: list[Preactivation] = []
        for direction in range(2 if module.bidirectional else 1):
            suffix = suffix_of(depth, direction)
            found.append(_gates(module, suffix))
            if module.mode == "LSTM" and module.proj_size:
                n = module.proj_size
                found.append(Preactivation(n, {f"weight_hr{suffix}": torch.arange(n)}, {}))
        self.preactivations = tuple(found)

    def run(self, module: Any, given: Any) -> Unrolled:
        if isinstance(given, Mapping):
            given = Sequences.of_call(module, given["input"], given["hx"])
        hidden = hidden_states(module, self._base, self._depth, given)
        wanted = {name for z in self.preactivations for name in z.rows}
        return Unrolled(
            dict(inputs_at(module, self._depth, wanted, given, hidden)),
            rows(hidden.transpose(0, 1), given.inside.mT),
            replace(given, x=hidden),
        )


def _gates(module: Any, suffix: str) -> Preactivation:
    """All gates of a layer in one direction."""
    size = module.hidden_size
    ih, hh = f"weight_ih{suffix}", f"weight_hh{suffix}"
    rows_ih = rows_hh = torch.arange(len(getattr(module, ih)))
    n_rows = len(rows_ih)
    if module.mode == "GRU":
        # Of the new state only what comes of the inputs is added as it is; what comes of the
        # states before is multiplied by the reset gate first.
        rows_hh = torch.cat([rows_ih[: 2 * size], torch.arange(n_rows, n_rows + size)])
        n_rows += size
    biases = {ih: f"bias_ih{suffix}", hh: f"bias_hh{suffix}"} if module.bias else {}
    return Preactivation(n_rows, {ih: rows_ih, hh: rows_hh}, biases)
