"""ResNets for images of 32 x 32 pixels and 10 classes, in plain PyTorch."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from networks import resnet
from torch import Tensor, nn
from torch.nn.functional import pad, relu


class Block(nn.Module):
    """Two 3 x 3 convolutions and a shortcut without parameters: zeros in new channels."""

    def __init__(self, inputs: int, outputs: int, stride: int):
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.stride, self.more = stride, (outputs - inputs) // 2

    def forward(self, x: Tensor) -> Tensor:
        h = self.bn2(self.conv2(relu(self.bn1(self.conv1(x)))))
        if self.more:
            x = pad(x[:, :, :: self.stride, :: self.stride], (0, 0, 0, 0, self.more, self.more))
        return relu(h + x)


class ThinResNet(nn.Module):
    """ResNet-20 (269,722 parameters), 32 or 56: 6 n + 2 layers (He et al. 2015, section 4.2).

    Names are those of the published checkpoints of akamaster/pytorch_resnet_cifar10.
    """

    def __init__(self, depth: int):
        super().__init__()
        n = (depth - 2) // 6
        self.conv1 = nn.Conv2d(3, 16, 3, 1, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(16)
        self.layer1 = nn.Sequential(Block(16, 16, 1), *(Block(16, 16, 1) for _ in range(n - 1)))
        self.layer2 = nn.Sequential(Block(16, 32, 2), *(Block(32, 32, 1) for _ in range(n - 1)))
        self.layer3 = nn.Sequential(Block(32, 64, 2), *(Block(64, 64, 1) for _ in range(n - 1)))
        self.linear = nn.Linear(64, 10)

    def forward(self, x: Tensor) -> Tensor:
        x = relu(self.bn1(self.conv1(x)))
        return self.linear(self.layer3(self.layer2(self.layer1(x))).mean((2, 3)))


def build(name: str) -> nn.Module:
    """Untrained network: "resnet20", "resnet32", "resnet56", or "resnet18" (11.2 million)."""
    if name == "resnet18":
        return resnet((2, 2, 2, 2), bottleneck=False, small_images=True, classes=10)
    return ThinResNet(int(name.removeprefix("resnet")))


def load_weights(network: nn.Module, path: Path) -> None:
    """Read weights from .npz (arrays by name) or .safetensors into `network`."""
    if path.suffix == ".npz":
        weights = {name: torch.from_numpy(array) for name, array in np.load(path).items()}
    else:
        from safetensors.torch import load_file

        weights = load_file(path)
    found = network.load_state_dict(weights, strict=False)
    missing = [name for name in found.missing_keys if "num_batches" not in name]
    if missing or found.unexpected_keys:
        extra = found.unexpected_keys
        raise ValueError(f"{path} is of another network: no {missing[:3]}, but {extra[:3]}")
