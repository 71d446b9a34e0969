"""Fashion-MNIST: ResNet-8 with BatchNorm learns 6,000 clothes; strangers are digits, grey photographs, clothes turned.

Training and held-out pictures are the same for all seeds, and so seeds share the members of their ensembles: seed s has
the networks s to s + 4.
"""

from __future__ import annotations

import gzip
import io
import zipfile
from pathlib import Path

import numpy as np
import torch
from networks import Block
from PIL import Image
from torch import Tensor, nn

from .tasks import MEMBERS, Task, dropout

EPOCHS, TRAIN, HELD_OUT, TEST = 8, 6000, 2000, 5000
#: Strangers of each kind.
OTHERS = 1000
MEAN, STD = 0.286, 0.353


def pictures(folder: Path, part: str) -> Tensor:
    """Bytes (N, 28, 28) of ``"train"`` or ``"t10k"``, from gzipped IDX files as Debian's package has them."""
    pixels = gzip.decompress((folder / f"{part}-images-idx3-ubyte.gz").read_bytes())
    return torch.from_numpy(np.frombuffer(pixels, np.uint8, offset=16).copy()).view(-1, 28, 28)


def load(folder: Path, mnist: Path | None, cifar: Path | None) -> dict[str, Tensor]:
    """Pictures, classes and strangers.

    Args:
        folder: With the files of Fashion-MNIST.
        mnist: An npz file of MNIST.
        cifar: A zip file with ``test/CLASS/*.jpg`` of 32 by 32 pixels; their middle is taken.
    """
    order = torch.randperm(60_000, generator=torch.Generator().manual_seed(0))[: TRAIN + HELD_OUT]
    x, x_test = pictures(folder, "train")[order], pictures(folder, "t10k")[:TEST]
    found = {"x": x, "y": _classes(folder, "train")[order], "x_test": x_test, "y_test": _classes(folder, "t10k")[:TEST]}
    if mnist is not None:
        with np.load(mnist) as file:
            found["digits"] = torch.from_numpy(file["x_test"][:OTHERS])
    if cifar is not None:
        found["photographs"] = _photographs(cifar)
    found["rotated"] = x_test[:OTHERS].rot90(1, (1, 2))
    return {name: part if name[0] == "y" else (part[:, None] / 255 - MEAN) / STD for name, part in found.items()}


def task(data: dict[str, Tensor], seed: int) -> Task:
    """Seeds differ in their networks only."""
    x, y = data["x"], data["y"]
    pairs = [(x[:TRAIN], y[:TRAIN]), (x[TRAIN:], y[TRAIN:]), (data["x_test"], data["y_test"])]
    strangers = {name: data[name] for name in ("digits", "photographs", "rotated") if name in data}
    return Task("fashion", resnet_8, range(seed, seed + MEMBERS), EPOCHS, *pairs, strangers)


def resnet_8(rate: float) -> nn.Module:
    """Three residual blocks, 78,000 weights; dropout of a rate after each."""
    stem = [nn.Conv2d(1, 16, 3, 2, 1, bias=False), nn.BatchNorm2d(16), nn.ReLU()]
    blocks = [layer for sizes in ((16, 16, 1), (16, 32, 2), (32, 64, 2)) for layer in (Block(*sizes), *dropout(rate))]
    return nn.Sequential(*stem, *blocks, nn.AdaptiveAvgPool2d(1), nn.Flatten(), nn.Linear(64, 10))


def _classes(folder: Path, part: str) -> Tensor:
    labels = gzip.decompress((folder / f"{part}-labels-idx1-ubyte.gz").read_bytes())
    return torch.from_numpy(np.frombuffer(labels, np.uint8, offset=8).copy()).long()


def _photographs(archive: Path) -> Tensor:
    with zipfile.ZipFile(archive) as file:
        names = sorted(name for name in file.namelist() if name.startswith("test/") and name.endswith(".jpg"))
        chosen = names[:: max(1, len(names) // OTHERS)][:OTHERS]  # of every class
        grey = [Image.open(io.BytesIO(file.read(name))).convert("L").crop((2, 2, 30, 30)) for name in chosen]
    return torch.from_numpy(np.stack([np.asarray(picture) for picture in grey]))
