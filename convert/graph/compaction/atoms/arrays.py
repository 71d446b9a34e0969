"""Arrays that broadcast to a shape: one element stands for all along an axis where nothing varies."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import torch
from torch import Tensor

__all__ = ["collapse", "nothing_known", "reshape_array", "reshaped_size", "varying_axes", "widened"]


def varying_axes(array: Tensor) -> list[int]:
    """Axes along which an array is not constant."""
    return [
        axis
        for axis, size in enumerate(array.shape)
        if size > 1 and not torch.equal(array, array.narrow(axis, 0, 1).expand_as(array))
    ]


def nothing_known(ndim: int) -> tuple[Tensor, Tensor]:
    """Known flags and constants of a value whose elements are all unknown."""
    return torch.zeros((1,) * ndim, dtype=torch.bool), torch.zeros((1,) * ndim, dtype=torch.float64)


def widened(array: Tensor, missing: int) -> Tensor:
    """The array with as many more leading axes of size one."""
    return array[(None,) * missing]


def collapse(known: Tensor, const: Tensor, axes: Iterable[int]) -> tuple[Tensor, Tensor]:
    """Reduce the axes to one element, known where all elements are known and equal."""
    for axis in axes:
        if known.shape[axis] > 1:
            first = const.narrow(axis, 0, 1)
            known = (known & (const == first)).all(axis, keepdim=True)
            const = first
    return known, const


def reshape_array(array: Tensor, before: Sequence[int], after: Sequence[int]) -> Tensor:
    """Reshape an array that broadcasts to ``before`` into one that broadcasts to ``after``.

    The shapes are cut into groups of axes with equal products; groups without extents stay without.
    """
    spread: list[int] = []
    wanted: list[int] = []
    for own, new in _axis_groups(before, after):
        if all(array.shape[axis] == 1 for axis in own):
            spread += [1] * len(own)
            wanted += [1] * len(new)
        else:
            spread += [before[axis] for axis in own]
            wanted += [after[axis] for axis in new]
    return array.expand(spread).reshape(wanted)


def reshaped_size(array: Tensor, before: Sequence[int], after: Sequence[int]) -> int:
    """Number of elements that :func:`reshape_array` would make."""
    return math.prod(
        math.prod(before[axis] for axis in own)
        for own, _ in _axis_groups(before, after)
        if any(array.shape[axis] > 1 for axis in own)
    )


def _axis_groups(before: Sequence[int], after: Sequence[int]) -> list[tuple[list[int], list[int]]]:
    """Smallest groups of consecutive axes with the same number of elements before and after."""
    groups = []
    i = j = 0
    while i < len(before) or j < len(after):
        own, new = [], []
        left = right = 1
        if i < len(before):
            own, left, i = [i], before[i], i + 1
        if j < len(after):
            new, right, j = [j], after[j], j + 1
        while left != right:
            if left < right:
                own.append(i)
                left, i = left * before[i], i + 1
            else:
                new.append(j)
                right, j = right * after[j], j + 1
        groups.append((own, new))
    return groups
