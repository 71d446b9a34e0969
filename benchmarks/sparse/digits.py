"""MNIST in three parts, as tensors; training pictures can be moved by some pixels, a batch at a time."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from images import HELD_OUT, MEAN, STD, normalised
from torch import Tensor, nn


@dataclass(frozen=True)
class Digits:
    """Pictures (N, 1, 28, 28) and classes (N,): to train on, to choose everything with, to judge by once."""

    train: tuple[Tensor, Tensor]
    held_out: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]

    @property
    def num_data(self) -> int:
        return len(self.train[1])

    def batches(self, size: int, shift: int) -> Iterator[tuple[Tensor, Tensor]]:
        """One pass in random order; all pictures of a batch move together by up to ``shift`` pixels, which is cheap."""
        x, y = self.train
        for part in torch.randperm(len(y)).split(size):
            down, right = torch.randint(-shift, shift + 1, (2,)).tolist()
            yield F.pad(x[part], (right, -right, down, -down), value=-MEAN / STD), y[part]


def load_digits(path: Path) -> Digits:
    """The last 10,000 training pictures are held out; nothing is chosen on the test pictures."""
    with np.load(path) as file:
        x, y, x_test, y_test = (torch.tensor(file[name]) for name in ("x_train", "y_train", "x_test", "y_test"))
    x, y = normalised(x), y.long()
    return Digits((x[:-HELD_OUT], y[:-HELD_OUT]), (x[-HELD_OUT:], y[-HELD_OUT:]), (normalised(x_test), y_test.long()))


@torch.no_grad()
def error(model: nn.Module, pairs: tuple[Tensor, Tensor]) -> float:
    """Percentage of wrong classes."""
    x, y = pairs
    was = model.training
    model.eval()
    wrong = sum(int((model(a).argmax(-1) != b).sum()) for a, b in zip(x.split(1000), y.split(1000), strict=True))
    model.train(was)
    return 100 * wrong / len(y)
