"""Operations that repeat elements: along an axis of size one, a whole axis, or one by one."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor

from ..arrays import varying_axes
from ..calls import Call
from ..domain import Value
from ..flow import Flow
from .lookup import rule
from .movement import resized

__all__ = ["expand"]


@rule("expand", "broadcast_to", "expand_as")
def expand(flow: Flow, call: Call) -> Any:
    """Axes of size one repeated without copying.

    A tensor without channels of its own (a gate of one channel) takes on those of the tensor that it is spread over.
    """
    x = flow.operand(call.operands[0])
    lead = (1,) * (len(call.shape) - x.ndim)
    shape = lead + x.shape
    grown = [axis for axis, (old, new) in enumerate(zip(shape, call.shape, strict=True)) if old == 1 and new > 1]
    alone = not varying_axes(flow.normal(x).atoms)
    if call.name == "expand_as":
        other = flow.settled(flow.operand(call.operands[1]))
        if alone:
            flow.pin(x, "it is spread over the channels of another tensor")
            known, const = (array.reshape(lead + tuple(array.shape)) for array in (x.known, x.const))
            return Value(call.shape, other.atoms, known, const)
        out = flow.moved(x, call.shape, lambda array: array.reshape(lead + tuple(array.shape)))
        if set(varying_axes(other.atoms)) & set(grown):
            flow.atoms.pin(other.atoms, "its shape is taken")
        else:
            flow.atoms.unite(out.atoms, other.atoms)
        return flow.normal(out)
    out = flow.moved(x, call.shape, lambda array: array.reshape(lead + tuple(array.shape)))
    if alone and call.meta.dtype.is_floating_point and [axis for axis in grown if axis] == [1] and len(call.shape) > 2:
        flow.pin(x, "it is spread over channels")
        extents = [size if axis == 1 else 1 for axis, size in enumerate(call.shape)]
        out = replace(out, atoms=flow.atoms.fresh(*extents), parent=None, move=None)
    resized(flow, call, out, 1)
    return out


@rule("repeat", "tile")
def repeat(flow: Flow, call: Call) -> Any:
    """Axes repeated as a whole."""
    x = flow.operand(call.operands[0])
    lead = (1,) * (len(call.shape) - x.ndim)
    times = [after // before for before, after in zip(lead + x.shape, call.shape, strict=True)]

    def move(array: Tensor) -> Tensor:
        array = array.reshape(lead + tuple(array.shape))
        return array.repeat([1 if extent == 1 else count for extent, count in zip(array.shape, times, strict=True)])

    return flow.moved(x, call.shape, move)


@rule("repeat_interleave")
def repeat_interleave(flow: Flow, call: Call) -> Any:
    """Elements repeated along one axis."""
    x, count, axis = flow.operand(call.operands[0]), call.get(1, "repeats"), call.get(2, "dim")
    if not isinstance(count, int) or axis is None:
        return flow.unknown(call, "repeat_interleave in a form that is not followed")
    axis %= x.ndim
    return flow.moved(
        x, call.shape, lambda array: array if array.shape[axis] == 1 else array.repeat_interleave(count, axis)
    )
