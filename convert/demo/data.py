"""The images of the demo: handwritten digits, and photographs that are no digits at all.

The digits are those that ship with scikit-learn (1,797 images of 8x8 pixels), or MNIST from a file. What the network
should be unsure about comes from scikit-learn's two sample photographs, cut into tiles and shrunk to the same size.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.utils.data import DataLoader, TensorDataset

from bensemble.errors import InvalidValueError, shown

from ..archives import load_arrays

__all__ = ["Images", "Loader", "load_digits", "load_mnist"]

Loader = DataLoader[tuple[Tensor, ...]]

_TILE = 32  # pixels of a photograph that become one image


@dataclass(frozen=True, repr=False)
class Images:
    """Images in float32 with mean 0 and variance 1 over the training set, shape (N, 1, side, side), and their digits.

    Attributes:
        name: What to call the data.
        train, val, test: Images and digits.
        unfamiliar: Images of something else.
    """

    name: str
    train: tuple[Tensor, Tensor]
    val: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    unfamiliar: Tensor

    @property
    def side(self) -> int:
        """Height and width of an image."""
        return self.unfamiliar.shape[-1]

    def loader(self, part: tuple[Tensor, Tensor], batch_size: int, shuffle: bool = False) -> Loader:
        """Batches of one part; shuffled ones follow torch's default generator."""
        return DataLoader(TensorDataset(*part), batch_size=batch_size, shuffle=shuffle)

    def __repr__(self) -> str:
        sizes = ", ".join(
            f"{len(part[1]):,} {name}"
            for name, part in (("train", self.train), ("validation", self.val), ("test", self.test))
        )
        return f"{self.name}: {self.side}x{self.side} pixels; {sizes}; {len(self.unfamiliar):,} tiles of photographs"


def load_digits() -> Images:
    """The digits of scikit-learn: 897 to train on, 300 to choose by, 600 to test on.

    They are in the order in which 13 people wrote them, and are cut in that order: the test is on the handwriting of
    people whom the network has never seen, as it is in use.
    """
    from sklearn import datasets

    bunch = datasets.load_digits()
    images = torch.from_numpy(bunch.images).float()[:, None] / 16
    digits = torch.from_numpy(bunch.target).long()
    parts = [(images[part], digits[part]) for part in (slice(0, 897), slice(897, 1197), slice(1197, None))]
    return _scaled("scikit-learn digits", *parts)


def load_mnist(path: Path) -> Images:
    """MNIST from an npz file with x_train, y_train, x_test, y_test; 2,000 of its training images are held out.

    Raises:
        InvalidValueError: The file is not there, or holds something else.
    """
    try:
        file = load_arrays(path)
        x_train, y_train, x_test, y_test = (file[key] for key in ("x_train", "y_train", "x_test", "y_test"))
        _check_images(x_train, y_train, 2000)
        _check_images(x_test, y_test, 0)
    except (OSError, KeyError, ValueError) as err:
        raise InvalidValueError(
            f"demo: '{path}' must be an .npz file with x_train, y_train, x_test, y_test, got {shown(err, 200)}; "
            "leave --data out to use the digits of scikit-learn."
        ) from err
    order = torch.randperm(len(y_train), generator=torch.Generator().manual_seed(0))
    train, val = order[2000:].numpy(), order[:2000].numpy()
    parts = ((x_train[train], y_train[train]), (x_train[val], y_train[val]), (x_test, y_test))
    return _scaled(
        "MNIST", *((torch.from_numpy(x).float()[:, None] / 255, torch.from_numpy(y).long()) for x, y in parts)
    )


def _check_images(x: np.ndarray, y: np.ndarray, held_out: int) -> None:
    if x.ndim != 3 or y.shape != x.shape[:1] or len(x) <= held_out or 0 in x.shape:
        raise ValueError(f"images of shape {x.shape} and labels of shape {y.shape}")
    if x.shape[1] != x.shape[2] or x.dtype.kind not in "biuf" or y.dtype.kind not in "iu":
        raise ValueError(f"images of shape {x.shape} in {x.dtype} and labels in {y.dtype}")


def _scaled(name: str, train: tuple[Tensor, Tensor], val: tuple[Tensor, Tensor], test: tuple[Tensor, Tensor]) -> Images:
    """Subtract the mean of the training images and divide by their standard deviation, photographs alike."""
    mean, std = train[0].mean(), train[0].std()
    train, val, test = (((x - mean) / std, y) for x, y in (train, val, test))
    return Images(name, train, val, test, unfamiliar=(_photographs(train[0].shape[-1]) - mean) / std)


def _photographs(side: int) -> Tensor:
    """Tiles of scikit-learn's photographs, gray, between 0 and 1, shape (N, 1, side, side)."""
    from sklearn import datasets

    tiles = []
    for photograph in datasets.load_sample_images().images:
        gray = torch.tensor(photograph).float().mean(-1)[None, None] / 255
        cut = F.unfold(gray, kernel_size=_TILE, stride=_TILE)  # (1, tile * tile, tiles)
        tiles.append(cut[0].T.reshape(-1, 1, _TILE, _TILE))
    return F.interpolate(torch.cat(tiles), size=(side, side), mode="area")
