"""Networks in which channels depend on each other, each in another way."""

from __future__ import annotations

from collections.abc import Callable

import torch
import torch.nn.functional as F
from torch import Tensor, nn


class Residual(nn.Module):
    """Two blocks on one stream, with batch normalisation."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 12, 3, padding=1, bias=False)
        self.norm = nn.BatchNorm2d(12)
        self.inner = nn.ModuleList(
            nn.Sequential(
                nn.Conv2d(12, 16, 3, padding=1, bias=False), nn.BatchNorm2d(16), nn.ReLU(),
                nn.Conv2d(16, 12, 3, padding=1, bias=False), nn.BatchNorm2d(12),
            )
            for _ in range(2)
        )  # fmt: skip
        self.head = nn.Linear(12, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.norm(self.stem(x)))
        for block in self.inner:
            x = F.relu(x + block(x))
        return self.head(x.mean((2, 3)))


class Padded(nn.Module):
    """A shortcut that puts zeros around the channels, as in the ResNets for CIFAR-10."""

    def __init__(self):
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 3, padding=1)
        self.one = nn.Conv2d(8, 16, 3, padding=1)
        self.two = nn.Conv2d(16, 16, 3, padding=1)
        self.head = nn.Linear(16, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.stem(x))
        x = F.relu(self.two(F.relu(self.one(x))) + F.pad(x, (0, 0, 0, 0, 4, 4)))
        return self.head(x.mean((2, 3)))


class Dense(nn.Module):
    """Concatenations, read by several layers."""

    def __init__(self):
        super().__init__()
        self.one = nn.Conv2d(3, 8, 3, padding=1)
        self.two = nn.Conv2d(8, 6, 3, padding=1)
        self.three = nn.Conv2d(14, 10, 1)
        self.head = nn.Linear(10, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu(self.one(x))
        x = torch.cat([x, F.relu(self.two(x))], 1)
        return self.head(F.relu(self.three(x)).mean((2, 3)))


class Mobile(nn.Module):
    """A depthwise convolution between two of 1 x 1, a grouped one, and a gate on its channels."""

    def __init__(self):
        super().__init__()
        self.expand = nn.Conv2d(3, 16, 1)
        self.depthwise = nn.Conv2d(16, 16, 3, padding=1, groups=16)
        self.norm = nn.BatchNorm2d(16)
        self.squeeze, self.excite = nn.Linear(16, 4), nn.Linear(4, 16)
        self.project = nn.Conv2d(16, 12, 1)
        self.grouped = nn.Conv2d(12, 8, 3, groups=4)
        self.activation = nn.PReLU(8)
        self.head = nn.Linear(8 * 36, 5)

    def forward(self, x: Tensor) -> Tensor:
        x = F.relu6(self.norm(self.depthwise(F.relu6(self.expand(x)))))
        gate = torch.sigmoid(self.excite(F.relu(self.squeeze(x.mean((2, 3))))))
        x = F.relu(self.project(x * gate[:, :, None, None]))
        return self.head(self.activation(self.grouped(x)).flatten(1))


class Attention(nn.Module):
    """Self-attention whose forward reads the number of heads from an attribute."""

    def __init__(self, width: int = 24, heads: int = 4, attribute: str = "num_heads"):
        super().__init__()
        self.attribute = attribute
        setattr(self, attribute, heads)
        self.width = width // heads
        self.norm = nn.LayerNorm(width)
        self.query, self.key = nn.Linear(width, width), nn.Linear(width, width)
        self.value, self.out = nn.Linear(width, width), nn.Linear(width, width)

    def forward(self, x: Tensor) -> Tensor:
        y = self.norm(x)
        heads = getattr(self, self.attribute)
        q, k, v = (
            layer(y).view(*x.shape[:2], heads, self.width).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        mixed = F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2)
        return x + self.out(mixed)


class Blocks(nn.Module):
    """A transformer of two blocks, with tokens averaged for its head."""

    def __init__(self, attribute: str = "num_heads"):
        super().__init__()
        self.attention = nn.ModuleList(Attention(attribute=attribute) for _ in range(2))
        self.wide = nn.ModuleList(nn.Linear(24, 48) for _ in range(2))
        self.narrow = nn.ModuleList(nn.Linear(48, 24) for _ in range(2))
        self.norm = nn.LayerNorm(24)
        self.head = nn.Linear(24, 5)

    def forward(self, x: Tensor) -> Tensor:
        for attention, wide, narrow in zip(self.attention, self.wide, self.narrow, strict=True):
            x = attention(x)
            x = x + narrow(F.gelu(wide(self.norm(x))))
        return self.head(x.mean(1))


def transposed() -> nn.Module:
    """An autoencoder with transposed convolutions."""
    return nn.Sequential(
        nn.Conv2d(3, 12, 3, stride=2, padding=1), nn.ReLU(),
        nn.ConvTranspose2d(12, 10, 4, stride=2, padding=1), nn.ReLU(),
        nn.ConvTranspose2d(10, 4, 3, padding=1, groups=2), nn.ReLU(), nn.Conv2d(4, 2, 1),
    )  # fmt: skip


def sequences() -> nn.Module:
    """Convolutions in one dimension, and a flattening."""
    return nn.Sequential(
        nn.Conv1d(4, 10, 3, padding=1), nn.BatchNorm1d(10), nn.ReLU(), nn.Conv1d(10, 6, 3),
        nn.ReLU(), nn.Flatten(), nn.Linear(6 * 10, 12), nn.ReLU(), nn.Linear(12, 5),
    )  # fmt: skip


IMAGES, TOKENS, SIGNALS = (16, 3, 8, 8), (16, 7, 24), (16, 4, 12)
CASES: dict[str, tuple[Callable[[], nn.Module], tuple[int, ...]]] = {
    "residual": (Residual, IMAGES),
    "padded shortcut": (Padded, IMAGES),
    "concatenation": (Dense, IMAGES),
    "depthwise, grouped, gated": (Mobile, IMAGES),
    "attention": (Blocks, TOKENS),
    "transposed": (transposed, IMAGES),
    "one dimension": (sequences, SIGNALS),
}


def case(name: str) -> tuple[nn.Module, Tensor]:
    """Make a network with lively normalisations in eval mode, and inputs for it."""
    make, shape = CASES[name]
    generator = torch.Generator().manual_seed(1)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = make()
    for module in model.modules():
        if isinstance(module, nn.BatchNorm1d | nn.BatchNorm2d):
            for tensor in (module.weight.data, module.running_var):
                tensor.copy_(0.5 + torch.rand(tensor.shape, generator=generator))
            for tensor in (module.bias.data, module.running_mean):
                tensor.copy_(torch.randn(tensor.shape, generator=generator))
    return model.eval(), torch.randn(shape, generator=generator)


def widths(model: nn.Module) -> dict[str, tuple[int, int]]:
    """Inputs and outputs of each linear layer and convolution."""
    found = {}
    for name, m in model.named_modules():
        if isinstance(m, nn.Linear):
            found[name] = m.in_features, m.out_features
        elif hasattr(m, "in_channels"):
            found[name] = m.in_channels, m.out_channels
    return found
