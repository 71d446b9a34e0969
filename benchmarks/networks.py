"""The layers and networks whose training steps are timed, and one that takes such steps."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from itertools import pairwise

import torch
import torch.nn.functional as F
from rounds import peak_memory
from torch import Tensor, nn


@dataclass(frozen=True)
class Case:
    """A network, its input, and whether the input needs a gradient, as in the middle of a network."""

    build: Callable[[], nn.Module]
    shape: tuple[int, ...]
    inner: bool = True
    channels_last: bool = False


class Block(nn.Module):
    """A basic residual block."""

    def __init__(self, inputs: int, outputs: int, stride: int) -> None:
        super().__init__()
        self.conv1 = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
        self.bn1 = nn.BatchNorm2d(outputs)
        self.conv2 = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
        self.bn2 = nn.BatchNorm2d(outputs)
        self.short = nn.Conv2d(inputs, outputs, 1, stride, bias=False) if stride > 1 else nn.Identity()

    def forward(self, x: Tensor) -> Tensor:
        return F.relu(self.bn2(self.conv2(F.relu(self.bn1(self.conv1(x))))) + self.short(x))


def mlp(*widths: int) -> nn.Sequential:
    """Linear layers with ReLUs between them; without arguments 784-400-400-10."""
    layers = [layer for i, o in pairwise(widths or (784, 400, 400, 10)) for layer in (nn.Linear(i, o), nn.ReLU())]
    return nn.Sequential(*layers[:-1])


def resnet(width: int = 32) -> nn.Module:
    stages = [Block(width * max(1, 2**i // 2), width * 2**i, 2 if i else 1) for i in range(4)]
    layers = [layer for i, stage in enumerate(stages) for layer in (stage, Block(width * 2**i, width * 2**i, 1))]
    stem = [nn.Conv2d(3, width, 3, 1, 1, bias=False), nn.BatchNorm2d(width), nn.ReLU()]
    return nn.Sequential(*stem, *layers, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(8 * width, 10))


def encoder() -> nn.Module:
    layer = nn.TransformerEncoderLayer(128, 4, 256, dropout=0.0, batch_first=True)
    return nn.TransformerEncoder(layer, 2, enable_nested_tensor=False)


CASES = {
    "Linear 512, batch 128": Case(lambda: nn.Linear(512, 512), (128, 512)),
    "Linear 4096, batch 64": Case(lambda: nn.Linear(4096, 4096), (64, 4096)),
    "MLP 784-400-400-10, batch 128": Case(mlp, (128, 784), inner=False),
    "Conv 64-64 3x3, 32x32, batch 32": Case(lambda: nn.Conv2d(64, 64, 3, padding=1), (32, 64, 32, 32)),
    "the same, channels_last": Case(lambda: nn.Conv2d(64, 64, 3, padding=1), (32, 64, 32, 32), channels_last=True),
    "Conv 3-64 7x7 stride 2, 224, batch 4": Case(lambda: nn.Conv2d(3, 64, 7, 2, 3), (4, 3, 224, 224)),
    "depthwise 64 3x3, 32x32, batch 32": Case(lambda: nn.Conv2d(64, 64, 3, 1, 1, groups=64), (32, 64, 32, 32)),
    "ResNet-18-like, width 32, batch 16": Case(resnet, (16, 3, 32, 32), inner=False),
    "transformer encoder, 2 x 128, batch 16 x 64": Case(encoder, (16, 64, 128), inner=False),
}


class Trainer:
    """One network with its optimizer, ready to take steps: zero_grad + forward + KL + backward + Adam.

    Args:
        network: What is trained.
        case: Its input.
        kl: The divergence of a Bayesian network after its forward; None for a deterministic one.
        fused: Whether Adam is the fused one.
    """

    def __init__(self, network: nn.Module, case: Case, kl: Callable[[nn.Module], Tensor] | None, fused: bool) -> None:
        self.network, self.kl = network.train(), kl
        self.inputs = torch.randn(case.shape)
        if case.channels_last:
            self.network.to(memory_format=torch.channels_last)
            self.inputs = self.inputs.to(memory_format=torch.channels_last)
        self.inputs.requires_grad_(case.inner)
        self.optimizer = torch.optim.Adam(self.network.parameters(), lr=1e-4, fused=fused)

    def forward(self) -> Tensor:
        loss = self.network(self.inputs).square().mean()
        return loss if self.kl is None else loss + self.kl(self.network) / 10_000

    def backward(self) -> None:
        self.optimizer.zero_grad()
        self.forward().backward()

    def step(self) -> None:
        self.backward()
        self.optimizer.step()

    def peak_memory(self) -> int:
        """Peak of the bytes of tensors that one step allocates, beyond what lives from step to step."""
        self.step()
        return peak_memory(self.step)
