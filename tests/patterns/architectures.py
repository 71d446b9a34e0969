"""Networks of the size of a thumb, in the shapes that people deploy."""

from __future__ import annotations

import torch
from torch import Tensor, nn


class Residual(nn.Module):
    """Two convolutions with norms, and a shortcut."""

    def __init__(self, channels: int, wider: int, stride: int) -> None:
        super().__init__()
        self.conv1, self.norm1 = nn.Conv2d(channels, wider, 3, stride, 1, bias=False), nn.BatchNorm2d(wider)
        self.conv2, self.norm2 = nn.Conv2d(wider, wider, 3, 1, 1, bias=False), nn.BatchNorm2d(wider)
        self.shortcut = nn.Sequential(nn.Conv2d(channels, wider, 1, stride, bias=False), nn.BatchNorm2d(wider))

    def forward(self, x: Tensor) -> Tensor:
        out = torch.relu(self.norm1(self.conv1(x)))
        return torch.relu(self.norm2(self.conv2(out)) + self.shortcut(x))


class SmallResNet(nn.Sequential):
    """A stem, two stages and a head."""

    def __init__(self) -> None:
        super().__init__(
            nn.Conv2d(3, 4, 3, padding=1, bias=False),
            nn.BatchNorm2d(4),
            nn.ReLU(),
            Residual(4, 4, 1),
            Residual(4, 8, 2),
            nn.AdaptiveAvgPool2d(1),
            nn.Flatten(),
            nn.Linear(8, 3),
        )


class BertLayer(nn.Module):
    """Self-attention and a feed-forward part, norms after."""

    def __init__(self, size: int = 8, heads: int = 2) -> None:
        super().__init__()
        self.heads = heads
        self.query, self.key, self.value = (nn.Linear(size, size) for _ in range(3))
        self.dense, self.norm1 = nn.Linear(size, size), nn.LayerNorm(size)
        self.wider, self.narrower, self.norm2 = nn.Linear(size, 16), nn.Linear(16, size), nn.LayerNorm(size)

    def forward(self, x: Tensor, mask: Tensor) -> Tensor:
        q, k, v = (f(x).unflatten(-1, (self.heads, -1)).transpose(1, 2) for f in (self.query, self.key, self.value))
        scores = q @ k.transpose(-1, -2) / q.shape[-1] ** 0.5
        scores = scores.masked_fill(mask[:, None, None] == 0, float("-inf"))
        mixed = (scores.softmax(-1) @ v).transpose(1, 2).flatten(2)
        x = self.norm1(x + self.dense(mixed.to(self.dense.weight.dtype)))
        return self.norm2(x + self.narrower(nn.functional.gelu(self.wider(x))))


class SmallBert(nn.Module):
    """Token, position and type tables, two layers, and a decoder tied to the token table."""

    def __init__(self) -> None:
        super().__init__()
        self.words, self.positions, self.norm = nn.Embedding(12, 8), nn.Embedding(16, 8), nn.LayerNorm(8)
        self.layers = nn.ModuleList([BertLayer() for _ in range(2)])
        self.decoder = nn.Linear(8, 12)
        self.decoder.weight = self.words.weight

    def forward(self, input_ids: Tensor, attention_mask: Tensor) -> Tensor:
        places = torch.arange(input_ids.shape[1], device=input_ids.device)
        x = self.norm(self.words(input_ids) + self.positions(places))
        for layer in self.layers:
            x = layer(x, attention_mask)
        return self.decoder(x)


def resnet() -> tuple[nn.Module, tuple[Tensor, ...]]:
    model = SmallResNet()
    model(torch.randn(8, 3, 8, 8))  # statistics for the norms
    return model, (torch.randn(2, 3, 8, 8),)


def bert() -> tuple[nn.Module, tuple[Tensor, ...]]:
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    return SmallBert(), (torch.randint(0, 12, (2, 5)), mask)


def encoder() -> tuple[nn.Module, tuple[Tensor, ...]]:
    layer = nn.TransformerEncoderLayer(8, 2, 16, dropout=0.0, batch_first=True)
    return nn.TransformerEncoder(layer, 2), (torch.randn(2, 5, 8),)


def recurrent() -> tuple[nn.Module, tuple[Tensor, ...]]:
    return nn.Sequential(nn.Linear(4, 6), LastState(), nn.Linear(5, 3)), (torch.randn(2, 4, 4),)


class LastState(nn.Module):
    """A GRU, its last output."""

    def __init__(self) -> None:
        super().__init__()
        self.gru = nn.GRU(6, 5, batch_first=True)

    def forward(self, x: Tensor) -> Tensor:
        return self.gru(x)[0][:, -1]


class Mixed(nn.Module):
    """A twin, attention, a recurrent layer and a raw Parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.attention = nn.Linear(4, 4), nn.MultiheadAttention(4, 2, batch_first=True)
        self.gru, self.raw = nn.GRU(4, 4, batch_first=True), nn.Parameter(torch.randn(4, 3))

    def forward(self, x: Tensor) -> Tensor:
        x = self.linear(x)
        return self.gru(self.attention(x, x, x, need_weights=False)[0])[0] @ self.raw
