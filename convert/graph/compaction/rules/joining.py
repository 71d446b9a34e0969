"""Operations that put tensors side by side, or lay a border around one."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
from torch import fx

from ..atoms.calls import Call
from ..atoms.domain import Value
from ..atoms.flow import Flow
from .lookup import rule

__all__ = ["pad"]


@rule("cat", "concat", "concatenate")
def concatenate(flow: Flow, call: Call) -> Any:
    """Tensors one after the other along an axis; along the others they share atoms."""
    axis = call.get(1, "dim", call.kwargs.get("axis", 0)) % len(call.shape)
    # torch accepts an empty vector among tensors of more axes, and leaves it out.
    values = [flow.plain(flow.settled(flow.operand(v))) for v in call.operands if v.shape != (0,)]
    _share_other_axes(flow, values, axis)
    joined = _joined(values, call.shape, axis)
    return flow.settled(replace(joined, from_inputs=all(value.from_inputs for value in values)))


@rule("stack")
def stack(flow: Flow, call: Call) -> Any:
    """Tensors side by side along a new axis."""
    axis = call.get(1, "dim", 0) % len(call.shape)
    values = [flow.plain(flow.settled(flow.operand(v))) for v in call.operands]
    wide = [v.mapped((*v.shape[:axis], 1, *v.shape[axis:]), lambda array: array.unsqueeze(axis)) for v in values]
    _share_other_axes(flow, wide, axis)
    return flow.settled(_joined(wide, call.shape, axis))


def _share_other_axes(flow: Flow, values: Sequence[Value], axis: int) -> None:
    """Unite what the tensors have in common, element by element along all axes but one."""
    for value in values[1:]:
        first, other = (flow.normal(v).atoms for v in (values[0], value))
        if any(v.shape[k] > 1 for v in (first, other) for k in range(first.ndim) if k != axis):
            if first.shape[axis] > 1 or other.shape[axis] > 1:
                flow.atoms.tie(first, axis, "it is joined along an outer axis")
                flow.atoms.tie(other, axis, "it is joined along an outer axis")
            flow.atoms.unite(first.narrow(axis, 0, 1), other.narrow(axis, 0, 1))


def _joined(values: Sequence[Value], shape: Sequence[int], axis: int) -> Value:
    """Values one after the other along an axis, their arrays spread out along it."""
    joined = []
    for arrays in zip(*((v.atoms, v.known, v.const) for v in values), strict=True):
        across = [[1 if k == axis else size for k, size in enumerate(array.shape)] for array in arrays]
        extents = list(torch.broadcast_shapes(*across))
        pieces = []
        for array, value in zip(arrays, values, strict=True):
            extents[axis] = value.shape[axis]
            pieces.append(array.expand(extents))
        joined.append(torch.cat(pieces, axis))
    atoms, known, const = joined
    return Value(tuple(shape), atoms, known, const)


@rule("pad", "constant_pad_nd")
def pad(flow: Flow, call: Call) -> Any:
    """A border of constants or of copies; channels that a border of constants adds are known."""
    x, amounts = flow.settled(flow.operand(call.operands[0])), list(call.get(1, "pad"))
    mode = call.get(2, "mode", "constant") if call.name == "pad" else "constant"
    filling = call.get(3, "value", None) if call.name == "pad" else call.get(2, "value", 0)
    filling = 0.0 if filling is None else float(filling)
    borders = {x.ndim - 1 - k // 2: (amounts[k], amounts[k + 1]) for k in range(0, len(amounts), 2)}
    borders = {axis: border for axis, border in borders.items() if border != (0, 0)}
    channel_axes = [axis for axis in borders if x.atoms.shape[axis] > 1 or x.known.shape[axis] > 1]
    if not channel_axes:
        return _pad_positions(call, x, mode, filling)
    by_module = call.node.op == "call_module"
    if by_module or len(borders) > 1 or mode != "constant" or min(borders[channel_axes[0]]) < 0:
        return flow.unknown(call, "its channels are padded in a form that is not followed")
    return _pad_channels(flow, call, x, channel_axes[0], borders[channel_axes[0]], filling)


def _pad_positions(call: Call, x: Value, mode: str, filling: float) -> Value:
    """Constants survive a border of copies; one of zeros leaves a pattern."""
    out = replace(x, shape=call.shape, parent=None, move=None, stochastic=False)
    if mode != "constant":
        return out
    if filling == 0:
        # x = c * (1 inside, 0 on the border); two patterns in a row are no longer one.
        return replace(out.plain(), patterned=True)
    return replace(out, known=x.known & (x.const == filling)).plain()


def _pad_channels(flow: Flow, call: Call, x: Value, axis: int, border: tuple[int, int], filling: float) -> Value:
    before, after = (_added(flow, x, axis, size, filling) for size in border)
    x = x.plain()
    pieces = [piece for piece in (before, x, after) if piece.shape[axis]]
    joined = _joined(pieces, call.shape, axis)

    def change(node: fx.Node, solution: Any) -> None:
        sizes = [solution.shape(piece)[axis] if piece.shape[axis] else 0 for piece in (before, after)]
        if sizes != list(border):
            amounts: list[Any] = list(node.args[1])  # type: ignore[arg-type]
            at = 2 * (x.ndim - 1 - axis)
            amounts[at : at + 2] = sizes
            node.update_arg(1, amounts)

    flow.edits.append((call.node, change))
    return flow.normal(joined)


def _added(flow: Flow, x: Value, axis: int, size: int, filling: float) -> Value:
    """New channels that hold one constant."""
    extents = [size if k == axis else 1 for k in range(x.ndim)]
    shape = tuple(size if k == axis else length for k, length in enumerate(x.shape))
    const = torch.full((1,) * x.ndim, filling, dtype=torch.float64)
    return Value(shape, flow.atoms.fresh(*extents), torch.ones_like(const, dtype=torch.bool), const)
