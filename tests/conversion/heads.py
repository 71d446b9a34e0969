"""Networks with a head that tests of the last layer share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn


class Network(nn.Module):
    """A hidden layer ``body``, a layer ``fc``, and what a test wants to follow; torch.fx cannot trace it."""

    def __init__(self, end: Callable[[Network, Tensor], Any], **modules: Any) -> None:
        super().__init__()
        self.end = end
        self.body, self.fc = nn.Linear(4, 8), nn.Linear(8, 3)
        for name, module in modules.items():
            setattr(self, name, module)

    def forward(self, x: Tensor) -> Any:
        if float(x.sum()) > 1e6:  # a trace would stop here
            raise AssertionError
        return self.end(self, torch.relu(self.body(x)))


class Tied(nn.Module):
    """A language model's head that reads the embedding's weight."""

    def __init__(self) -> None:
        super().__init__()
        self.embedding, self.body, self.lm_head = nn.Embedding(9, 4), nn.Linear(4, 4), nn.Linear(4, 9, bias=False)
        self.lm_head.weight = self.embedding.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.lm_head(self.body(self.embedding(x)).tanh())


def x() -> Tensor:
    return torch.randn(5, 4)


def flags(model: nn.Module) -> dict[str, bool]:
    return {path: m.is_last for path, m in model.named_modules() if hasattr(m, "is_last")}
