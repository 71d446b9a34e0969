"""Small networks of the families that the sweep covers in full size."""

from __future__ import annotations

import torch
from torch import Tensor, nn

__all__ = ["NETWORKS", "Encoder", "SelfAttention"]


def unit(inputs: int, outputs: int, kernel: int = 3, groups: int = 1) -> nn.Sequential:
    """Convolution, norm, activation."""
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, groups=groups, bias=False),
        nn.BatchNorm2d(outputs),
        nn.ReLU(),
    )


class Classifier(nn.Module):
    """A body between a stem and a head."""

    def __init__(self, body: nn.Module, width: int = 16) -> None:
        super().__init__()
        self.stem, self.body, self.head = unit(3, 16), body, nn.Linear(width, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.body(self.stem(x)).mean((2, 3)))


class Residual(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first, self.second = unit(16, 16), nn.Sequential(nn.Conv2d(16, 16, 3, padding=1), nn.BatchNorm2d(16))

    def forward(self, x: Tensor) -> Tensor:
        return torch.relu(x + self.second(self.first(x)))


class SqueezeExcite(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.expand, self.depthwise, self.project = unit(16, 32, 1), unit(32, 32, 3, 32), nn.Conv2d(32, 16, 1)
        self.squeeze, self.excite = nn.Conv2d(32, 8, 1), nn.Conv2d(8, 32, 1)

    def forward(self, x: Tensor) -> Tensor:
        hidden = self.depthwise(self.expand(x))
        gate = torch.sigmoid(self.excite(torch.relu(self.squeeze(hidden.mean((2, 3), keepdim=True)))))
        return x + self.project(hidden * gate)


class Dense(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([unit(16 + 8 * k, 8) for k in range(2)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            x = torch.cat([x, layer(x)], 1)
        return x


class Inception(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.one, self.three = unit(16, 8, 1), nn.Sequential(unit(16, 8, 1), unit(8, 16))
        self.pooled = nn.Sequential(nn.MaxPool2d(3, 1, padding=1), unit(16, 8, 1))

    def forward(self, x: Tensor) -> Tensor:
        return torch.cat([self.one(x), self.three(x), self.pooled(x)], 1)


class Shuffle(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.grouped, self.branch = unit(16, 16, 3, 4), unit(8, 8)

    def forward(self, x: Tensor) -> Tensor:
        left, right = self.grouped(x).chunk(2, 1)
        x = torch.cat([left, self.branch(right)], 1)
        batch, channels, height, width = x.shape
        return x.view(batch, 2, channels // 2, height, width).transpose(1, 2).reshape(batch, -1, height, width)


NETWORKS = {
    "residual": lambda: Classifier(nn.Sequential(Residual(), Residual())),
    "squeeze_excite": lambda: Classifier(nn.Sequential(SqueezeExcite(), SqueezeExcite())),
    "dense": lambda: Classifier(Dense(), 32),
    "inception": lambda: Classifier(Inception(), 32),
    "shuffle": lambda: Classifier(Shuffle()),
}


class SelfAttention(nn.Module):
    """Attention with one projection for queries, keys and values, as in GPT-2 and ViT; a tracer must run it."""

    def __init__(self, width: int = 16, heads: int = 4) -> None:
        super().__init__()
        self.heads = heads
        self.together, self.proj = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.norm, self.up, self.down = nn.LayerNorm(width), nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        batch, length, width = x.shape
        if length > 100:  # no symbolic tracing past this line
            raise ValueError("too long")
        parts = self.together(self.norm(x)).reshape(batch, length, 3, self.heads, width // self.heads)
        query, key, value = parts.permute(2, 0, 3, 1, 4).unbind(0)
        mixed = nn.functional.scaled_dot_product_attention(query, key, value)
        x = x + self.proj(mixed.transpose(1, 2).reshape(batch, length, -1))
        return x + self.down(torch.nn.functional.gelu(self.up(self.norm(x))))


class Encoder(nn.Module):
    """Tokens to classes, by torch's own encoder or by blocks that only torch.export can follow."""

    def __init__(self, blocks: nn.Module, width: int = 16) -> None:
        super().__init__()
        self.tokens, self.blocks, self.head = nn.Embedding(50, width), blocks, nn.Linear(width, 3)

    def forward(self, tokens: Tensor) -> Tensor:
        return self.head(self.blocks(self.tokens(tokens))[:, 0])
