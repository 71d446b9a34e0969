"""The arrays of a call, checked against the inputs of a file."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

__all__ = ["checked_feed", "not_finite", "numpy_dtype"]

NUMPY_TYPES = {"float": "float32", "double": "float64"}

#: Dtype and shape of an input; a string is an axis of any size.
InputType = tuple[str, tuple[Any, ...]]


def checked_feed(
    inputs: Mapping[str, InputType], arrays: Sequence[Any], named: Mapping[str, Any]
) -> dict[str, np.ndarray]:
    """The arrays by the names of the inputs.

    Raises:
        TypeError: An input is missing, unknown, not an array or of another dtype.
        ValueError: An input has another shape. Only a batch may be empty.
    """
    names = list(inputs)
    if len(arrays) > len(names):
        raise TypeError(f"session: takes {len(names)} inputs ({', '.join(names)}), got {len(arrays)}.")
    feed = dict(zip(names, arrays, strict=False))
    twice, unknown = sorted(set(feed) & set(named)), sorted(set(named) - set(names))
    missing = [name for name in names if name not in feed and name not in named]
    for fault, found in (("given twice", twice), ("unknown", unknown), ("missing", missing)):
        if found:
            raise TypeError(f"session: input '{found[0]}' is {fault}; the file takes {', '.join(names)}.")
    feed.update(named)
    sizes: dict[str, tuple[int, str]] = {}
    for name, array in feed.items():
        dtype, shape = inputs[name]
        if not isinstance(array, np.ndarray) or array.dtype != dtype:
            got = f"an array of {array.dtype}" if isinstance(array, np.ndarray) else type(array).__name__
            raise TypeError(
                f"session: '{name}' must be a numpy array of {dtype}, got {got}; "
                f"use numpy.asarray({name}, dtype='{dtype}')."
            )
        fits = len(shape) == array.ndim and all(
            isinstance(want, str) or want is None or want == size for want, size in zip(shape, array.shape, strict=True)
        )
        is_empty = 0 in array.shape[0 if array.shape[:1] != (0,) or not isinstance(shape[0], str) else 1 :]
        if not fits or is_empty:
            raise ValueError(
                f"session: '{name}' must have the shape {_shape_text(shape)} and at least one entry, got {array.shape}."
            )
        for want, size in zip(shape, array.shape, strict=True):
            first, of = sizes.setdefault(str(want), (size, name))
            if isinstance(want, str) and first != size:
                raise ValueError(f"session: '{name}' and '{of}' must agree in {want}, got {size} and {first}.")
    return feed


def not_finite(array: np.ndarray) -> np.ndarray:
    """Which rows of an input hold NaN or infinity; the -inf of an additive mask, with nothing above 0, is allowed."""
    if array.dtype.kind != "f" or np.isfinite(array).all():
        return np.zeros(len(array) if array.ndim else 1, dtype=bool)
    allowed = np.isfinite(array) | (np.isneginf(array) & (array.max() <= 0))
    return ~allowed.reshape(len(array) if array.ndim else 1, -1).all(1)


def numpy_dtype(onnx_type: str) -> str:
    """The dtype that ONNX Runtime calls ``tensor(float)``, as numpy calls it."""
    name = onnx_type.removeprefix("tensor(").removesuffix(")")
    return NUMPY_TYPES.get(name, name)


def _shape_text(shape: Sequence[Any]) -> str:
    return f"({', '.join(str(size) for size in shape)})"
