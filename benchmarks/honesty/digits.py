"""MNIST: LeNet-300-100 learns 10,000 digits; strangers are digits turned, and digits moved."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .tasks import Task, head

EPOCHS, HIDDEN, TRAIN, HELD_OUT = 8, (300, 100), 10_000, 2000


def load(path: Path) -> dict[str, Tensor]:
    """An npz file of MNIST."""
    with np.load(path) as file:
        arrays = {key: torch.from_numpy(file[key]) for key in file.files}
    return {key: array.float().flatten(1) / 255 if key[0] == "x" else array.long() for key, array in arrays.items()}


def task(data: dict[str, Tensor], seed: int) -> Task:
    """Training and held-out digits of this seed."""
    places = torch.randperm(len(data["y_train"]), generator=torch.Generator().manual_seed(seed))
    parts = places[:TRAIN], places[TRAIN : TRAIN + HELD_OUT]
    pairs = [(data["x_train"][part], data["y_train"][part]) for part in parts] + [(data["x_test"], data["y_test"])]
    return Task(lambda: head(784, HIDDEN, 10), EPOCHS, *pairs, _strangers(data["x_test"]))


def _strangers(x: Tensor) -> dict[str, Tensor]:
    """Digits turned by 90 degrees, and digits 8 pixels to the right and down."""
    images = x.view(-1, 28, 28)
    shifted = torch.zeros_like(images)
    shifted[:, 8:, 8:] = images[:, :-8, :-8]
    return {"rotated": images.rot90(1, (1, 2)).flatten(1), "shifted": shifted.flatten(1)}
