"""One forward of a user's model on a user's batch, and what is said where it fails."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor

from ..errors import BensembleError, InvalidValueError, one_line
from .batches import Inputs, call
from .outputs import OutputSelector, describe, select_output, tensor_paths

__all__ = ["forward", "is_about_memory", "naming_batch"]

#: How torch, and checks in a forward, report inputs that do not fit.
FROM_TORCH = (RuntimeError, TypeError, ValueError, IndexError, AssertionError, AttributeError)


def forward(verb: str, model: Callable[..., Any], inputs: Inputs, output: OutputSelector | None = None) -> Tensor:
    """The tensor that a model gives for a batch.

    Args:
        verb: The public function that runs the model.
        model: The model.
        inputs: What it is called with, on its device.
        output: Which part of a structured output.

    Raises:
        InvalidValueError: The forward fails; see :func:`naming_batch`.
    """
    with naming_batch(verb, model, inputs):
        result = call(model, inputs)
    return select_output(result, output)


@contextmanager
def naming_batch(verb: str, model: Callable[..., Any], inputs: Inputs) -> Iterator[None]:
    """Around forwards of a model on a batch: where one fails, say in which call and on what.

    torch reports a batch that does not fit, such as one of a wrong shape or dtype, by a builtin error from deep inside.
    That becomes the cause of an error of this toolkit. Errors of other types, also those that a library defines, keep
    their type and carry the same words as a note (from Python 3.11 on). Those about memory are left alone.

    Raises:
        InvalidValueError: From an error of one of the types of ``FROM_TORCH``.
    """
    try:
        yield
    except BensembleError:
        raise
    except Exception as err:
        if is_about_memory(err):
            raise
        tensors = [f"{path} {tuple(t.shape)} {str(t.dtype).removeprefix('torch.')}" for path, t in tensor_paths(inputs)]
        what = describe(inputs) if isinstance(inputs, Tensor) else ", ".join(tensors) or describe(inputs)
        words = f"{verb}: {type(model).__name__} fails on a batch that is {what}, got {one_line(err)}"
        if type(err) in FROM_TORCH:
            several = isinstance(err, TypeError) and isinstance(inputs, Tensor)
            hint = ": a tuple of its arguments, from a loader by unpack=lambda batch: (batch[:-1], batch[-1])" * several
            raise InvalidValueError(f"{words}; give batches as its forward takes them{hint}.") from err
        if hasattr(err, "add_note"):
            err.add_note(f"{words}.")
        raise


def is_about_memory(error: BaseException) -> bool:
    """Whether something did not fit into memory; PyTorch has a class of its own for this on accelerators only."""
    return isinstance(error, (torch.OutOfMemoryError, MemoryError)) or (
        isinstance(error, RuntimeError) and "can't allocate memory" in str(error)
    )
