"""The images of the demo: handwritten digits, and photographs that are no digits at all.

The digits are those that ship with scikit-learn (1,797 images of 8x8 pixels), or MNIST from a file. What the network
should not know: scikit-learn's two sample photographs, cut into tiles and shrunk to the same size, and test digits with
their pixels shuffled, as negatives, or upside down. Some of the last are digits again: a 0, a 1 and an 8 stay what they
are, a 6 is a 9.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
import torch.nn.functional as F
from sklearn import datasets
from torch import Tensor

from bensemble import InvalidValueError

__all__ = ["Images", "load_digits", "load_mnist"]


@dataclass(frozen=True, repr=False)
class Images:
    """Images in float32, mean 0 and variance 1 over the training set, shape (N, 1, side, side), and their digits.

    Attributes:
        name: Where they come from.
        train: To train on.
        val: To choose by: a temperature, the noise of a last layer.
        cal: Familiar images that nothing was chosen by: p-values, prediction sets, thresholds.
        test: To measure on, once.
        strangers: Images that are no digits, or no digits as in ``train``, by what they are.
    """

    name: str
    train: tuple[Tensor, Tensor]
    val: tuple[Tensor, Tensor]
    cal: tuple[Tensor, Tensor]
    test: tuple[Tensor, Tensor]
    strangers: Mapping[str, Tensor]

    @property
    def side(self) -> int:
        """Height and width of an image."""
        return self.test[0].shape[-1]

    def __repr__(self) -> str:
        parts = {"train on": self.train, "choose by": self.val, "calibrate by": self.cal, "test on": self.test}
        sizes = ", ".join(f"{len(digits):,} to {name}" for name, (_, digits) in parts.items())
        return f"{self.name}, {self.side}x{self.side} pixels: {sizes}"


def load_digits() -> Images:
    """The digits of scikit-learn: 897 to train on, 200 to choose by, 200 to calibrate by, 500 to test on.

    They are in the order in which 13 people wrote them. The network learns from the first ones, and everything else is
    the handwriting of people whom it has never seen, as it is in use.
    """
    bunch = datasets.load_digits()
    others = 897 + torch.randperm(900, generator=torch.Generator().manual_seed(0))
    cut = (slice(0, 897), *(part.numpy() for part in others.split([200, 200, 500])))
    return _scaled("scikit-learn digits", 16, *((bunch.images[part], bunch.target[part]) for part in cut))


def load_mnist(path: Path) -> Images:
    """MNIST from an npz file with x_train, y_train, x_test, y_test: at most 10,000 to train on and 2,000 to test on.

    2,000 of its training images are held out, half of them to choose by, half to calibrate by.

    Raises:
        InvalidValueError: The file is not there, or holds something else.
    """
    try:
        if not path.is_file():
            raise FileNotFoundError("there is no such file")
        with np.load(path, allow_pickle=False) as file:
            x_train, y_train, x_test, y_test = (file[key] for key in ("x_train", "y_train", "x_test", "y_test"))
        _check_images(x_train, y_train, 2000)
        _check_images(x_test, y_test, 0)
    except Exception as err:  # zipfile, zlib and numpy raise a dozen kinds
        raise InvalidValueError(
            f"demo: '{path}' must be an .npz file with x_train, y_train, x_test, y_test, got {repr(err)[:200]}; "
            "leave --data out to use the digits of scikit-learn."
        ) from err
    order = torch.randperm(len(y_train), generator=torch.Generator().manual_seed(0)).numpy()
    cut = (order[2000:12000], order[:1000], order[1000:2000])
    return _scaled("MNIST", 255, *((x_train[part], y_train[part]) for part in cut), (x_test[:2000], y_test[:2000]))


def _check_images(x: np.ndarray, y: np.ndarray, held_out: int) -> None:
    square = x.ndim == 3 and x.shape[1] == x.shape[2] and 0 not in x.shape
    numbers = x.dtype.kind in "biuf" and y.dtype.kind in "iu"
    if not square or not numbers or y.shape != x.shape[:1] or len(x) <= held_out:
        raise ValueError(f"images {x.dtype} of shape {x.shape} and labels {y.dtype} of shape {y.shape}")


def _scaled(name: str, white: int, *parts: tuple[np.ndarray, np.ndarray]) -> Images:
    """Subtract the mean of the training images and divide by their standard deviation, strangers alike."""
    pairs = [(torch.from_numpy(x).float()[:, None] / white, torch.from_numpy(y).long()) for x, y in parts]
    mean, std, test = pairs[0][0].mean(), pairs[0][0].std(), pairs[3][0]
    strangers = {
        "photographs": _photographs(test.shape[-1]),
        "shuffled pixels": _shuffled(test),
        "negatives": 1 - test,
        "upside down": test.flip(-2, -1),
    }
    train, val, cal, tested = (((x - mean) / std, y) for x, y in pairs)
    return Images(name, train, val, cal, tested, {kind: (x - mean) / std for kind, x in strangers.items()})


def _shuffled(images: Tensor) -> Tensor:
    """The same pixels in another order, which is another one for each image."""
    order = torch.rand(images.flatten(1).shape, generator=torch.Generator().manual_seed(0)).argsort(1)
    return images.flatten(1).gather(1, order).view_as(images)


def _photographs(side: int) -> Tensor:
    """Tiles of scikit-learn's photographs, gray, between 0 and 1, shape (N, 1, side, side)."""
    tile, tiles = 32, []  # pixels of a photograph that become one image
    for photograph in datasets.load_sample_images().images:
        gray = torch.tensor(photograph).float().mean(-1)[None, None] / 255
        cut = F.unfold(gray, kernel_size=tile, stride=tile)  # (1, tile * tile, tiles)
        tiles.append(cut[0].T.reshape(-1, 1, tile, tile))
    return F.interpolate(torch.cat(tiles), size=(side, side), mode="area")
