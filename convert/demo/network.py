"""The networks of the demo: an ordinary one and its training, and the average of draws that goes into a file."""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from convert import to_deterministic

__all__ = ["DigitNet", "Draws", "train"]


class DigitNet(nn.Module):
    """Two convolutions with BatchNorm, two linear layers: logits of ten digits from gray ``side`` x ``side`` images."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.features = nn.Sequential(_block(1, 32), _block(32, 64))
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(64 * (side // 4) ** 2, 128), nn.ReLU(), nn.Linear(128, 10))

    def forward(self, images: Tensor) -> Tensor:
        """Logits, shape (B, 10)."""
        logits: Tensor = self.head(self.features(images))
        return logits


class Draws(nn.Module):
    """The average of ``num_samples`` draws from a posterior, as one plain network: probabilities instead of logits."""

    def __init__(self, bnn: nn.Module, num_samples: int, generator: torch.Generator) -> None:
        super().__init__()
        self.members = nn.ModuleList(
            to_deterministic(bnn, sample=True, generator=generator) for _ in range(num_samples)
        )

    def forward(self, images: Tensor) -> Tensor:
        """Probabilities, shape (B, C)."""
        return torch.stack([member(images).softmax(-1) for member in self.members]).mean(0)


def train(
    network: nn.Module, loader: Iterable[tuple[Tensor, ...]], epochs: int, progress: Callable[[int, int], None]
) -> None:
    """Cross entropy and Adam."""
    optimizer = torch.optim.Adam(network.parameters(), lr=1e-3)
    network.train()
    for epoch in range(epochs):
        for images, digits in loader:
            loss = F.cross_entropy(network(images), digits)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        progress(epoch + 1, epochs)
    network.eval()


def _block(channels: int, width: int) -> nn.Sequential:
    convolution = nn.Conv2d(channels, width, kernel_size=3, padding=1, bias=False)
    return nn.Sequential(convolution, nn.BatchNorm2d(width), nn.ReLU(), nn.MaxPool2d(2))
