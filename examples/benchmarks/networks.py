"""Networks that the benchmarks measure, with random weights and in plain PyTorch."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Residual(nn.Module):
    """The block of ResNets: convolutions with BatchNorm, and a shortcut around them."""

    def __init__(self, body: nn.Module, shortcut: nn.Module):
        super().__init__()
        self.body = body
        self.shortcut = shortcut

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(self.body(x) + self.shortcut(x))


def conv_norm(inputs: int, outputs: int, kernel: int, stride: int = 1) -> nn.Sequential:
    conv = nn.Conv2d(inputs, outputs, kernel, stride, kernel // 2, bias=False)
    return nn.Sequential(conv, nn.BatchNorm2d(outputs))


def resnet(
    depths: tuple[int, ...], *, bottleneck: bool, small_images: bool = False, classes: int = 1000
) -> nn.Module:
    """ResNet for images of 224 x 224, or of 32 x 32 pixels (He et al. 2015, arXiv 1512.03385)."""
    layers: list[nn.Module] = [conv_norm(3, 64, 7, 2), nn.ReLU(), nn.MaxPool2d(3, 2, 1)]
    if small_images:
        layers = [conv_norm(3, 64, 3), nn.ReLU()]
    inputs = 64
    for stage, depth in enumerate(depths):
        width = 64 * 2**stage
        outputs = 4 * width if bottleneck else width
        for block in range(depth):
            stride = 2 if block == 0 and stage > 0 else 1
            if bottleneck:
                body = nn.Sequential(
                    conv_norm(inputs, width, 1), nn.ReLU(), conv_norm(width, width, 3, stride),
                    nn.ReLU(), conv_norm(width, outputs, 1),
                )  # fmt: skip
            else:
                body = nn.Sequential(
                    conv_norm(inputs, width, 3, stride), nn.ReLU(), conv_norm(width, outputs, 3)
                )
            same = stride == 1 and inputs == outputs
            shortcut = nn.Identity() if same else conv_norm(inputs, outputs, 1, stride)
            layers.append(Residual(body, shortcut))
            inputs = outputs
    layers += [nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(inputs, classes)]
    return nn.Sequential(*layers)


class EncoderBlock(nn.Module):
    """Transformer block with the query, key and value layers apart, as BERT has them."""

    def __init__(self, width: int, n_heads: int, inner: int):
        super().__init__()
        self.n_heads = n_heads
        self.query, self.key, self.value, self.out = (nn.Linear(width, width) for _ in range(4))
        self.norm1, self.norm2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, inner), nn.GELU(), nn.Linear(inner, width))

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = (
            layer(x).unflatten(-1, (self.n_heads, -1)).transpose(1, 2)
            for layer in (self.query, self.key, self.value)
        )
        mixed = nn.functional.scaled_dot_product_attention(q, k, v)
        x = self.norm1(x + self.out(mixed.transpose(1, 2).flatten(2)))
        return self.norm2(x + self.mlp(x))


def bert_base() -> nn.Module:
    """Encoder of the shape of BERT-base with its embedding: 108 million parameters."""
    return nn.Sequential(
        nn.Embedding(30522, 768),
        nn.LayerNorm(768),
        *(EncoderBlock(768, 12, 3072) for _ in range(12)),
    )


NETWORKS = {
    "resnet18": lambda: resnet((2, 2, 2, 2), bottleneck=False),
    "resnet50": lambda: resnet((3, 4, 6, 3), bottleneck=True),
    "bert-base": bert_base,
}
