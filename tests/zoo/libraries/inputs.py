"""Short names for the inputs that the tables of models use."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import torch

Inputs = Callable[[], Any]


def normal(*shape: int) -> Inputs:
    """Normal numbers."""
    return partial(torch.randn, *shape)


def image(side: int = 32, channels: int = 3) -> Inputs:
    """Two square images."""
    return normal(2, channels, side, side)


def tokens(length: int = 12, vocabulary: int = 50) -> Inputs:
    """Two sequences of token numbers, none of them 0."""
    return partial(torch.randint, 1, vocabulary, (2, length))


def several(*makers: Inputs) -> Inputs:
    """A tuple of arguments."""
    return lambda: tuple(make() for make in makers)
