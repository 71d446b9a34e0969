"""The networks that these tests convert."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Block(nn.Module):
    """Attention and two Linears, by the names that Hugging Face uses."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.value = nn.Linear(4, 4), nn.Linear(4, 4)
        self.norm = nn.LayerNorm(4)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x + self.query(x).softmax(-1) * self.value(x))


class TextModel(nn.Module):
    """An embedding, a frozen projection, two blocks, a raw matrix, a position table and a head."""

    def __init__(self) -> None:
        super().__init__()
        self.positions = nn.Parameter(torch.randn(5, 4))
        self.mix = nn.Parameter(torch.randn(4, 4))
        self.embedding = nn.Embedding(9, 4)
        self.projection = nn.Linear(4, 4).requires_grad_(False)
        self.blocks = nn.ModuleList([Block() for _ in range(2)])
        self.head = nn.Linear(4, 3)

    def forward(self, index: Tensor) -> Tensor:
        x = self.projection(self.embedding(index)) + self.positions
        for block in self.blocks:
            x = block(x)
        return self.head(x @ self.mix)


def tokens() -> Tensor:
    """Inputs of the text model."""
    return torch.randint(0, 9, (2, 5))


def small() -> nn.Sequential:
    """Convolution, norm, Linear."""
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.BatchNorm2d(4), nn.Flatten(), nn.Linear(16, 2))
