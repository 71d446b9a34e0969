"""CIFAR-10: a head on EfficientNet-Lite0 features learns six classes; strangers are four others, clothes and digits."""

from __future__ import annotations

import io
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import torch
from PIL import Image
from torch import Tensor

from .clothes import pictures
from .features import cached, of_pictures
from .tasks import MEMBERS, Pair, Task, head, standardised

KNOWN = ("airplane", "automobile", "bird", "cat", "deer", "dog")
NEW = ("frog", "horse", "ship", "truck")
EPOCHS, HIDDEN, HELD_OUT = 8, (256, 128), 1200
#: Pictures of clothes, and of digits.
OTHERS = 1000


def load(archive: Path, fashion: Path, mnist: Path | None, cache: Path) -> dict[str, Any]:
    """Features of everything.

    Args:
        archive: A zip file with ``train/CLASS/*.jpg`` and ``test/CLASS/*.jpg``.
        fashion: A folder with the files of Fashion-MNIST.
        mnist: An npz file of MNIST.
        cache: Folder for the features.
    """
    found = cached(cache / "cifar-features.pt", lambda: _features(archive))
    strangers = {"new classes": found["new"]}
    if fashion.exists():
        strangers["Fashion"] = cached(cache / "fashion-features.pt", lambda: {"x": of_pictures(_clothes(fashion))})["x"]
    if mnist is not None:
        strangers["digits"] = cached(cache / "digits-features.pt", lambda: {"x": of_pictures(_digits(mnist))})["x"]
    return found | {"strangers": strangers}


def task(data: dict[str, Any], seed: int) -> Task:
    """Held-out pictures of this seed are taken from the training pictures."""
    x, y = data["x_train"], data["y_train"]
    order = torch.randperm(len(y), generator=torch.Generator().manual_seed(seed))
    train, held_out = order[HELD_OUT:], order[:HELD_OUT]
    parts = standardised(x[train], x[held_out], data["x_test"], *data["strangers"].values())

    def network(rate: float) -> torch.nn.Module:
        return head(x.shape[1], HIDDEN, len(KNOWN), rate)

    pairs: list[Pair] = [(parts[0], y[train]), (parts[1], y[held_out]), (parts[2], data["y_test"])]
    seeds = range(100 * seed, 100 * seed + MEMBERS)
    return Task("cifar", network, seeds, EPOCHS, *pairs, dict(zip(data["strangers"], parts[3:], strict=True)))


def _features(archive: Path) -> dict[str, Tensor]:
    found = {}
    with zipfile.ZipFile(archive) as file:
        names = sorted(name for name in file.namelist() if name.endswith(".jpg"))

        def features(part: str, classes: tuple[str, ...]) -> Pair:
            chosen = [name for name in names if name.split("/")[0] == part and name.split("/")[1] in classes]
            pictures = [Image.open(io.BytesIO(file.read(name))) for name in chosen]
            labels = torch.tensor([classes.index(name.split("/")[1]) for name in chosen])
            return of_pictures(pictures), labels

        found["x_train"], found["y_train"] = features("train", KNOWN)
        found["x_test"], found["y_test"] = features("test", KNOWN)
        found["new"], _ = features("test", NEW)
    return found


def _clothes(folder: Path) -> list[Image.Image]:
    return [Image.fromarray(picture) for picture in pictures(folder, "t10k")[:OTHERS].numpy()]


def _digits(path: Path) -> list[Image.Image]:
    with np.load(path) as file:
        return [Image.fromarray(picture) for picture in file["x_test"][:OTHERS]]
