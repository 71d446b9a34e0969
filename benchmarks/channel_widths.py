"""Milliseconds of a small residual network in ONNX Runtime on one thread, by the channels inside its two blocks.

python benchmarks/channel_widths.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import torch
from torch import nn
from torch.nn.functional import relu

from convert import compare_onnx, export_onnx

#: Channels inside the blocks of 32 and of 64.
WIDTHS = ((32, 64), (24, 48), (17, 33), (16, 32), (15, 31), (8, 16))


class Block(nn.Module):
    """A residual block with other channels inside than outside."""

    def __init__(self, outside: int, inside: int) -> None:
        super().__init__()
        self.first = nn.Sequential(nn.Conv2d(outside, inside, 3, padding=1), nn.BatchNorm2d(inside), nn.ReLU())
        self.second = nn.Sequential(nn.Conv2d(inside, outside, 3, padding=1), nn.BatchNorm2d(outside))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return relu(x + self.second(self.first(x)))


def network(first: int, second: int) -> nn.Module:
    """A network for pictures of 32 by 32 with so many channels inside its blocks."""
    ends = nn.Sequential(nn.Conv2d(3, 32, 3, padding=1), nn.BatchNorm2d(32), nn.ReLU(), nn.MaxPool2d(2))
    down = nn.Sequential(nn.Conv2d(32, 64, 1, stride=2), nn.BatchNorm2d(64), nn.ReLU())
    head = nn.Sequential(nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))
    return nn.Sequential(*ends, Block(32, first), *down, Block(64, second), *head).eval()


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        files = {f"{first} and {second}": Path(folder) / f"{first}.onnx" for first, second in WIDTHS}
        for (first, second), path in zip(WIDTHS, files.values(), strict=True):
            export_onnx(network(first, second), path, torch.randn(1, 3, 32, 32))
        print(compare_onnx(files, torch.randn(64, 3, 32, 32), batch_sizes=(1, 32)))


if __name__ == "__main__":
    main()
