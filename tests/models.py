"""Layers of every kind, and the comparisons that tests of several files make."""

from __future__ import annotations

import copy
import io
from collections.abc import Callable, Mapping
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from skcompress import SVDCompressor
from skcompress.layers import Factorized

# What `low_rank_` leaves of every weight, and what `exact` asks for.
RANK = 2


def seeded(build: Callable[[], Any], seed: int = 0) -> Any:
    """What `build` gives when it draws from a generator of its own."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return build()


def random(*shape: int, seed: int = 1, dtype: torch.dtype = torch.float64) -> Tensor:
    generator = torch.Generator().manual_seed(seed)
    return torch.randn(*shape, generator=generator, dtype=torch.float64).to(dtype)


@torch.no_grad()
def low_rank_(model: nn.Module, rank: int = RANK) -> nn.Module:
    """Give every weight a CP rank, and so the rank of every unfolding, of at most `rank`."""
    for number, parameter in enumerate(model.parameters()):
        if parameter.dim() < 2:
            continue
        total = torch.zeros(parameter.shape, dtype=torch.float64)
        for term in range(rank):
            product = torch.ones((), dtype=torch.float64)
            for axis, size in enumerate(parameter.shape):
                vector = random(size, seed=1000 * number + 10 * term + axis)
                product = product[..., None] * vector
            total += product
        norm = parameter.double().norm()
        parameter.copy_(total * (norm / total.norm()))
    return model


def exact(**settings: Any) -> SVDCompressor:
    """A compressor that loses nothing of what `low_rank_` leaves."""
    return SVDCompressor(rank=RANK, **settings)


def factorized(model: nn.Module) -> dict[str, nn.Module]:
    """The outermost stand-ins of a model, by name."""
    found: dict[str, nn.Module] = {}
    for name, module in model.named_modules():
        if isinstance(module, Factorized) and not any(
            name.startswith(f"{outer}." if outer else "") for outer in found
        ):
            found[name] = module
    return found


def distance(ours: Any, theirs: Any) -> float:
    """Largest difference relative to the norm, over nested results of the same form."""
    if isinstance(theirs, Tensor):
        assert ours.shape == theirs.shape
        assert ours.dtype == theirs.dtype
        ours, theirs = ours.detach().double(), theirs.detach().double()
        return float((ours - theirs).norm()) / max(float(theirs.norm()), 1e-30)
    if isinstance(theirs, Mapping):
        assert list(ours) == list(theirs)
        return max((distance(ours[key], theirs[key]) for key in theirs), default=0.0)
    if isinstance(theirs, tuple | list):
        assert len(ours) == len(theirs)
        return max((distance(a, b) for a, b in zip(ours, theirs, strict=True)), default=0.0)
    assert type(ours) is type(theirs)
    return 0.0


class Experts(nn.Module):
    """Laid out as the experts of transformers are."""

    has_gate = True
    has_bias = is_transposed = has_post_expert_norm = _is_expert_parallel = False

    def __init__(self, n_experts: int = 3, hidden: int = 12, inner: int = 16):
        super().__init__()
        self.act_fn = nn.SiLU()
        self.gate_up_proj = nn.Parameter(torch.randn(n_experts, 2 * inner, hidden))
        self.down_proj = nn.Parameter(torch.randn(n_experts, hidden, inner))

    def _apply_gate(self, gate_up: Tensor) -> Tensor:
        gate, up = gate_up.chunk(2, dim=-1)
        return self.act_fn(gate) * up

    def forward(self, hidden_states: Tensor, top_k_index: Tensor, top_k_weights: Tensor) -> Tensor:
        output = torch.zeros_like(hidden_states)
        for expert in range(len(self.down_proj)):
            token, place = torch.where(top_k_index == expert)
            inner = self._apply_gate(hidden_states[token] @ self.gate_up_proj[expert].mT)
            result = inner @ self.down_proj[expert].mT
            output = output.index_add(0, token, result * top_k_weights[token, place, None])
        return output


def _conv1d_of_transformers() -> nn.Module:
    return pytest.importorskip("transformers.pytorch_utils").Conv1D(24, 20)


def _experts_input(dtype: torch.dtype) -> tuple[Tensor, ...]:
    index = torch.tensor([[0, 1], [2, 0], [1, 2], [2, 1], [0, 2]])
    return random(5, 12, dtype=dtype), index, random(5, 2, seed=2, dtype=dtype).sigmoid()


def _three_sequences(dtype: torch.dtype) -> tuple[Tensor, ...]:
    return tuple(random(5, 3, 16, seed=seed, dtype=dtype) for seed in (1, 2, 3))


# By name: what builds a layer, what makes its arguments, and which of its parameters are
# no biases.
LAYERS: dict[str, tuple[Callable[[], nn.Module], Callable[[torch.dtype], tuple[Tensor, ...]]]] = {
    "linear": (lambda: nn.Linear(20, 24), lambda t: (random(3, 20, dtype=t),)),
    "linear without bias": (
        lambda: nn.Linear(20, 24, bias=False),
        lambda t: (random(3, 20, dtype=t),),
    ),
    "conv1d of transformers": (
        _conv1d_of_transformers,
        lambda t: (random(3, 20, dtype=t),),
    ),
    "convolution": (
        lambda: nn.Conv2d(6, 8, 3, padding=1, stride=2),
        lambda t: (random(2, 6, 9, 8, dtype=t),),
    ),
    "grouped convolution": (
        lambda: nn.Conv1d(12, 16, 5, groups=2, padding="same", padding_mode="circular"),
        lambda t: (random(2, 12, 11, dtype=t),),
    ),
    "transposed convolution": (
        lambda: nn.ConvTranspose2d(8, 12, 3, stride=2, output_padding=1, groups=2),
        lambda t: (random(2, 8, 5, 4, dtype=t),),
    ),
    "embedding": (
        lambda: nn.Embedding(30, 12, padding_idx=0),
        lambda t: (torch.tensor([[0, 3, 29], [7, 7, 1]]),),
    ),
    "attention": (lambda: nn.MultiheadAttention(16, 4), _three_sequences),
    "lstm": (
        lambda: nn.LSTM(10, 12, num_layers=2, bidirectional=True),
        lambda t: (random(5, 3, 10, dtype=t),),
    ),
    "gru": (
        lambda: nn.GRU(10, 12, batch_first=True),
        lambda t: (random(3, 5, 10, dtype=t),),
    ),
    "rnn": (
        lambda: nn.RNN(10, 12, nonlinearity="relu"),
        lambda t: (random(5, 3, 10, dtype=t),),
    ),
    "experts": (Experts, _experts_input),
}


def layer(name: str, dtype: torch.dtype = torch.float64) -> tuple[nn.Module, tuple[Tensor, ...]]:
    """A layer whose weights have rank `RANK`, in eval mode, and arguments for it."""
    build, arguments = LAYERS[name]
    return low_rank_(seeded(build).to(dtype)).eval(), arguments(dtype)


def check_all_is_in_the_state(one: nn.Module, other: nn.Module, x: Tensor) -> None:
    """Whether `other`, of the same layout, is `one` once it has its state, read from a file."""
    stream = io.BytesIO()
    torch.save(one.state_dict(), stream)
    stream.seek(0)
    other.load_state_dict(torch.load(stream, weights_only=True))
    assert torch.equal(other(x), one(x))
    assert torch.equal(copy.deepcopy(one)(x), one(x))
