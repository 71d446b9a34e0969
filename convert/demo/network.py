"""The ordinary network of the demo: two convolutions with BatchNorm, two linear layers."""

from __future__ import annotations

from torch import Tensor, nn

__all__ = ["DigitNet"]


class DigitNet(nn.Module):
    """Logits of ten digits from gray images of ``side`` x ``side`` pixels."""

    def __init__(self, side: int) -> None:
        super().__init__()
        self.features = nn.Sequential(_block(1, 32), _block(32, 64))
        self.head = nn.Sequential(nn.Flatten(), nn.Linear(64 * (side // 4) ** 2, 128), nn.ReLU(), nn.Linear(128, 10))

    def forward(self, images: Tensor) -> Tensor:
        """Logits, shape (B, 10)."""
        logits: Tensor = self.head(self.features(images))
        return logits


def _block(channels: int, width: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(channels, width, kernel_size=3, padding=1, bias=False),
        nn.BatchNorm2d(width),
        nn.ReLU(),
        nn.MaxPool2d(2),
    )
