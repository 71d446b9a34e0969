"""``torch.einsum`` while a model is traced: from left to right."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch

__all__ = ["left_to_right"]


@contextmanager
def left_to_right() -> Iterator[None]:
    """Keep opt_einsum, where it is installed, from choosing the order of three and more operands.

    It computes with the sizes of the operands as plain numbers, and so torch.export takes them all, the batch as well,
    for sizes that never change.
    """
    # Entered only where it does something: torch cannot restore flags that were off before.
    if torch.backends.opt_einsum.enabled:
        with torch.backends.opt_einsum.flags(enabled=False):
            yield
    else:
        yield
