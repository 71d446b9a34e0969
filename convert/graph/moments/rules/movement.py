"""Operations that rearrange elements."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch

from ..registry import CannotFollowError, Operation, formula, rule
from ..state import Uncertain, Weight

__all__: list[str] = []


@formula("dropout", "dropout_", "alpha_dropout", "feature_dropout", "contiguous", "clone", "detach", "alias", "to")
@formula("identity", "lift_fresh_copy", "_to_copy")
def unchanged(x: Uncertain, *_: Any, **__: Any) -> Uncertain:
    """What leaves the values as they are in evaluation mode."""
    return x


@rule("flatten", "view", "reshape", "_unsafe_view", "unflatten", "squeeze", "unsqueeze")
def reshape(operation: Operation) -> Uncertain:
    """Other axes, as long as features stay features and positions stay positions."""
    x = operation.args[0]
    if isinstance(x, Weight):
        raise CannotFollowError("it reshapes a weight")
    mean = operation.plain(x.mean)
    axis, folded = _after(x, tuple(mean.shape))
    return replace(x, mean=mean, variance=operation.plain(x.variance), axis=axis, folded=folded, beside=None)


def _after(x: Uncertain, shape: tuple[int, ...]) -> tuple[int, int]:
    """Axis of the features and number of folded positions in the new shape."""
    count, before = x.own.shape[-1], tuple(x.mean.shape)
    if not shape or shape[0] != before[0]:
        raise CannotFollowError(f"it moves elements between examples, from shape {before} to {shape}")
    positions = math.prod(before[1:]) // count
    if x.axis == 1 and len(shape) == 2:
        return 1, positions
    if x.axis == 1 and shape[1] == count:
        return 1, 1
    if x.axis == x.ndim - 1 and x.folded == 1 and shape[-1] == count:
        return len(shape) - 1, 1
    if x.folded == 1 and positions == 1 and count in shape[1:]:
        return shape.index(count, 1), 1
    raise CannotFollowError(f"it mixes features and positions, from shape {before} to {shape}")


@rule("permute", "transpose", "movedim", "swapaxes", "t", "numpy_T")
def permute(operation: Operation) -> Uncertain | Weight:
    """The axes in another order."""
    x = operation.args[0]
    if isinstance(x, Weight):
        return Weight(x.path, operation.plain(x.mean), operation.plain(x.variance))
    moved = operation.plain(torch.empty([axis + 2 for axis in range(x.ndim)], device="meta")).shape
    if moved[0] != 2 or x.folded > 1:
        raise CannotFollowError("it moves the batch axis or folded positions")
    mean, variance = operation.plain(x.mean), operation.plain(x.variance)
    return replace(x, mean=mean, variance=variance, axis=moved.index(x.axis + 2), beside=None)
