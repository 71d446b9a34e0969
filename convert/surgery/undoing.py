"""Undoing half of a change to a model when the other half fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager

from torch import Tensor

__all__ = ["undone_on_failure", "value_restorer"]


@contextmanager
def undone_on_failure(undo: list[Callable[[], None]]) -> Iterator[None]:
    """When the body raises, run all functions of ``undo``, the last one first, even where one of them fails."""
    try:
        yield
    except BaseException:
        with ExitStack() as stack:
            for restore in undo:
                stack.callback(restore)
        raise


def value_restorer(tensor: Tensor) -> Callable[[], None]:
    """A function that gives a tensor the values back that it has now."""
    kept = tensor.detach().clone()

    def restore() -> None:
        tensor.data.copy_(kept)

    return restore
