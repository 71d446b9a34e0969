"""MNIST: LeNet-300-100 learns 10,000 digits; strangers are digits turned, digits moved, and clothes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from .clothes import pictures
from .tasks import MEMBERS, Task, head

EPOCHS, HIDDEN, TRAIN, HELD_OUT = 8, (300, 100), 10_000, 2000


def load(path: Path, fashion: Path) -> dict[str, Tensor]:
    """An npz file of MNIST, and the test pictures of Fashion-MNIST where its folder is there."""
    with np.load(path) as file:
        arrays = {key: torch.from_numpy(file[key]) for key in file.files}
    if fashion.exists():
        arrays["x_clothes"] = pictures(fashion, "t10k")
    return {key: array.float().flatten(1) / 255 if key[0] == "x" else array.long() for key, array in arrays.items()}


def task(data: dict[str, Tensor], seed: int) -> Task:
    """Training and held-out digits of this seed."""
    places = torch.randperm(len(data["y_train"]), generator=torch.Generator().manual_seed(seed))
    parts = places[:TRAIN], places[TRAIN : TRAIN + HELD_OUT]
    pairs = [(data["x_train"][part], data["y_train"][part]) for part in parts] + [(data["x_test"], data["y_test"])]
    seeds = range(100 * seed, 100 * seed + MEMBERS)
    return Task("mnist", lambda rate: head(784, HIDDEN, 10, rate), seeds, EPOCHS, *pairs, _strangers(data))


def _strangers(data: dict[str, Tensor]) -> dict[str, Tensor]:
    """Digits turned by 90 degrees, digits 8 pixels to the right and down, and clothes."""
    images = data["x_test"].view(-1, 28, 28)
    shifted = torch.zeros_like(images)
    shifted[:, 8:, 8:] = images[:, :-8, :-8]
    found = {"rotated": images.rot90(1, (1, 2)).flatten(1), "shifted": shifted.flatten(1)}
    return found | ({"Fashion": data["x_clothes"]} if "x_clothes" in data else {})
