"""What the weights of LSTM, GRU and RNN are applied to: inputs and previous hidden states.

torch gives the hidden states of the last layer only, so that the layers are run one by one.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from ..protocols import Rows, rows


@dataclass(frozen=True)
class Sequences:
    """What one layer of a recurrent module is given in one call.

    x : (sequence, batch, in); lengths : (batch,), on the CPU
    h, c : (layers * directions, batch, size), of the whole module before the first step
    """

    x: Tensor
    lengths: Tensor
    h: Tensor
    c: Tensor

    @classmethod
    def of_call(cls, layer: Any, input: Any, hx: Any) -> Sequences:
        """Read the arguments of a call."""
        x, lengths = _time_first(layer, input)
        batched = x.shape[1] > 1 or _is_batched(input)
        return cls(x, lengths, *_initial_states(layer, hx, x, batched=batched))

    @property
    def inside(self) -> Tensor:
        """(sequence, batch), False beyond the end of a sequence."""
        steps = torch.arange(len(self.x), device=self.x.device)
        return steps[:, None] < self.lengths.to(self.x.device)


def recurrent_inputs(
    layer: Any, base: type[nn.RNNBase], wanted: Collection[str], input: Any, hx: Any
) -> Iterator[tuple[str, Rows]]:
    """Yield the name and the inputs of each wanted weight of one call of `layer`.

    Positions are (batch, sequence) whatever the layer's own order; those beyond the end
    of a packed sequence do not count.
    """
    given = Sequences.of_call(layer, input, hx)
    for depth in range(layer.num_layers):
        hidden = hidden_states(layer, base, depth, given)
        yield from inputs_at(layer, depth, wanted, given, hidden)
        given = replace(given, x=hidden)


def hidden_states(layer: Any, base: type[nn.RNNBase], depth: int, given: Sequences) -> Tensor:
    """Hidden states (sequence, batch, directions * size) of one layer, zero after the end."""
    n_directions = 2 if layer.bidirectional else 1
    here = slice(depth * n_directions, (depth + 1) * n_directions)
    h, c = given.h[here], given.c[here]
    packed = pack_padded_sequence(given.x, given.lengths, enforce_sorted=False)
    single = _single(layer, base, depth, given.x.shape[-1])
    done, _ = single(packed, (h, c) if layer.mode == "LSTM" else h)
    hidden: Tensor = pad_packed_sequence(done, total_length=len(given.x))[0]
    return hidden


def inputs_at(
    layer: Any, depth: int, wanted: Collection[str], given: Sequences, hidden: Tensor
) -> Iterator[tuple[str, Rows]]:
    """Yield the inputs of each wanted weight of one layer, whose hidden states are known."""
    n_directions, inside = 2 if layer.bidirectional else 1, given.inside
    for direction, own in enumerate(hidden.chunk(n_directions, dim=-1)):
        suffix, number = suffix_of(depth, direction), depth * n_directions + direction
        before = _previous(own, given.h[number], given.lengths, bool(direction))
        found = {f"weight_ih{suffix}": given.x, f"weight_hh{suffix}": before}
        projected = f"weight_hr{suffix}"
        if projected in wanted:
            start = given.c[number]
            found[projected] = _unprojected(layer, suffix, given.x, before, start, inside)
        for name, value in found.items():
            if name in wanted:
                yield name, rows(value.transpose(0, 1), inside.mT)


def suffix_of(depth: int, direction: int) -> str:
    """Give the end of the names of all parameters of a layer in one direction."""
    return f"_l{depth}" + ("_reverse" if direction else "")


def _is_batched(input: Any) -> bool:
    return isinstance(input, PackedSequence) or input.dim() == 3


def _time_first(layer: Any, input: Any) -> tuple[Tensor, Tensor]:
    """Input as (sequence, batch, in), and the length of each sequence, on the CPU."""
    if isinstance(input, PackedSequence):
        return pad_packed_sequence(input)
    if input.dim() == 2:
        input = input[:, None]
    elif layer.batch_first:
        input = input.transpose(0, 1)
    return input, torch.full((input.shape[1],), input.shape[0])


def _initial_states(layer: Any, hx: Any, x: Tensor, batched: bool) -> tuple[Tensor, Tensor]:
    """Hidden and cell state (layers * directions, batch, size) before the first step."""
    if hx is not None:
        h, c = hx if layer.mode == "LSTM" else (hx, hx)
        return (h, c) if batched else (h[:, None], c[:, None])
    count = layer.num_layers * (2 if layer.bidirectional else 1)
    sizes = (layer.proj_size or layer.hidden_size, layer.hidden_size)
    h, c = (x.new_zeros(count, x.shape[1], size) for size in sizes)
    return h, c


def _single(layer: Any, base: type[nn.RNNBase], depth: int, input_size: int) -> nn.RNNBase:
    """Make a recurrent layer of depth one around the weights of layer `depth`."""
    settings = {"bias": layer.bias, "bidirectional": layer.bidirectional, "device": "meta"}
    if layer.mode == "LSTM":
        settings["proj_size"] = layer.proj_size
    elif layer.mode != "GRU":
        settings["nonlinearity"] = layer.mode.removeprefix("RNN_").lower()
    single = base(input_size, layer.hidden_size, **settings)
    for name in single._flat_weights_names:
        setattr(single, name, getattr(layer, name.replace("_l0", f"_l{depth}")))
    return single


def _previous(hidden: Tensor, start: Tensor, lengths: Tensor, backwards: bool) -> Tensor:
    """Hidden state (sequence, batch, size) before each step; `start` is that of the first."""
    if not backwards:
        return torch.cat([start[None], hidden[:-1]])
    before = torch.cat([hidden[1:], start[None]])
    before[lengths - 1, torch.arange(len(lengths))] = start
    return before


def _unprojected(
    layer: Any, suffix: str, x: Tensor, before: Tensor, cell: Tensor, inside: Tensor
) -> Tensor:
    """Hidden states of an LSTM before its projection: all gates at once, then the cells."""
    bias = ("bias_ih", "bias_hh") if layer.bias else ()
    b_ih, b_hh = (getattr(layer, name + suffix) for name in bias) if bias else (None, None)
    gates = nn.functional.linear(x, getattr(layer, f"weight_ih{suffix}"), b_ih)
    gates = gates + nn.functional.linear(before, getattr(layer, f"weight_hh{suffix}"), b_hh)
    i, f, g, o = gates.chunk(4, dim=-1)
    i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
    states = torch.empty_like(o)
    steps = range(len(x))
    for step in reversed(steps) if suffix.endswith("_reverse") else steps:
        # Beyond the end of a sequence a backward cell has not started yet.
        cell = torch.where(inside[step, :, None], f[step] * cell + i[step] * g[step], cell)
        states[step] = o[step] * cell.tanh()
    return states
