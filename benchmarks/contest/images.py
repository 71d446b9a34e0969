"""The pictures: MNIST in three parts, and pictures that are no ordinary digits."""

from __future__ import annotations

import gzip
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor

MEAN, STD = 0.1307, 0.3081
#: The last training pictures choose every setting of every method; the test pictures choose nothing.
HELD_OUT = 10_000
#: Pictures of each kind of strangers.
STRANGERS = 2_500


@dataclass(frozen=True)
class Pairs:
    """Pictures and their classes, which give batches without copying pictures one by one.

    Attributes:
        x: Pictures, (N, 1, 28, 28).
        y: Classes, (N,).
        batch: Size of a batch.
        shuffled: Whether each pass has an order of its own, from torch's default generator.
    """

    x: Tensor
    y: Tensor
    batch: int = 500
    shuffled: bool = False

    def __len__(self) -> int:
        return -(-len(self.y) // self.batch)

    def __iter__(self) -> Iterator[tuple[Tensor, Tensor]]:
        order = torch.randperm(len(self.y)) if self.shuffled else torch.arange(len(self.y))
        for part in order.split(self.batch):
            yield self.x[part], self.y[part]


@dataclass(frozen=True, eq=False)
class Images:
    """MNIST, normalised: 50,000 pictures to train on, 10,000 to choose with, 10,000 to judge by; and strangers."""

    train: Pairs
    held_out: Pairs
    test: Pairs
    strangers: dict[str, Tensor]


def load_images(mnist: Path, fashion: Path) -> Images:
    """Read both data sets.

    Args:
        mnist: An npz file with x_train, y_train, x_test, y_test.
        fashion: The gzipped IDX file of Fashion-MNIST's test pictures.
    """
    with np.load(mnist) as file:
        x, y, x_test, y_test = (torch.tensor(file[name]) for name in ("x_train", "y_train", "x_test", "y_test"))
    train, held_out = (normalised(part) for part in (x[:-HELD_OUT], x[-HELD_OUT:]))
    test = normalised(x_test)
    pixels = np.frombuffer(gzip.decompress(fashion.read_bytes()), np.uint8, offset=16)
    strangers = {
        "Fashion": normalised(torch.tensor(pixels.reshape(-1, 28, 28)[:STRANGERS])),
        "rotated": rotated(test[:STRANGERS], degrees=90),
        "shifted": shifted(test[:STRANGERS], pixels=8),
    }
    return Images(
        Pairs(train, y[:-HELD_OUT].long(), 128, shuffled=True),
        Pairs(held_out, y[-HELD_OUT:].long()),
        Pairs(test, y_test.long()),
        strangers,
    )


def normalised(pixels: Tensor) -> Tensor:
    """Bytes (N, 28, 28) as the networks want them."""
    return (pixels[:, None].float() / 255 - MEAN) / STD


def rotated(x: Tensor, degrees: float) -> Tensor:
    """Every picture turned around its centre, with background at the corners."""
    angle = torch.deg2rad(torch.tensor(degrees))
    turn = torch.tensor([[angle.cos(), -angle.sin(), 0.0], [angle.sin(), angle.cos(), 0.0]])
    grid = F.affine_grid(turn.expand(len(x), 2, 3), list(x.shape), align_corners=False)
    background = -MEAN / STD
    return F.grid_sample(x - background, grid, align_corners=False) + background


def shifted(x: Tensor, pixels: int) -> Tensor:
    """Every picture moved to the right and down; what leaves the frame is lost."""
    return F.pad(x, (pixels, 0, pixels, 0), value=-MEAN / STD)[..., :28, :28]
