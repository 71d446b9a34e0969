"""Operations that only rearrange or repeat elements: atoms, known flags and constants are moved alike."""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import torch
from torch import fx

from ..atoms.arrays import collapse, reshape_array, reshaped_size, varying_axes, widened
from ..atoms.calls import Call
from ..atoms.domain import LeafRef, Value
from ..atoms.flow import Flow
from .lookup import rule

__all__: list[str] = []

#: Arrays of more elements than this are not spread out to be reshaped.
MOST_ELEMENTS = 1 << 26


@rule("view", "reshape", "_unsafe_view", "flatten", "unflatten", "view_as", "reshape_as", "ravel")
def reshape(flow: Flow, call: Call) -> Any:
    """The same elements in row-major order under another shape."""
    x = flow.operand(call.operands[0])
    if not call.gives_tensor or math.prod(x.shape) == 0 or isinstance(call.get(1, "dtype"), torch.dtype):
        return flow.unknown(call, f"{call.name} in a form that is not followed")
    before, after = x.shape, call.shape
    if max(reshaped_size(array, before, after) for array in (x.atoms, x.known)) > MOST_ELEMENTS:
        return flow.unknown(call, "it is too large to reshape")
    if after[:2] != before[:2]:
        x = flow.plain(x)
    out = flow.moved(x, after, lambda array: reshape_array(array, before, after))
    if call.name in ("view", "reshape", "_unsafe_view"):
        resized(flow, call, out, 1)
    elif call.name == "unflatten":
        resized(flow, call, out, 2, first_axis=call.get(1, "dim") % len(before))
    elif call.name in ("view_as", "reshape_as"):
        flow.atoms.unite(flow.operand(call.operands[1]).atoms, out.atoms)
    return out


@rule("permute", "transpose", "swapaxes", "swapdims", "movedim", "moveaxis", "t", "adjoint", "T", "mT")
def permute(flow: Flow, call: Call) -> Any:
    """Axes in another order."""
    x = call.operands[0]
    probe = torch.empty(tuple(range(2, 2 + x.ndim)), device="meta")
    order = tuple(size - 2 for size in call.run(probe).shape)
    if x.leaf is not None:
        axes = tuple(x.leaf.axes[axis] for axis in order)
        return replace(x, shape=call.shape, leaf=LeafRef(x.leaf.path, axes))
    return flow.moved(x, call.shape, lambda array: array.permute(order))


@rule("unsqueeze")
def unsqueeze(flow: Flow, call: Call) -> Any:
    """A new axis of size one."""
    x = call.operands[0]
    axis = call.get(1, "dim") % (x.ndim + 1)
    return flow.moved(x, call.shape, lambda array: array.unsqueeze(axis))


@rule("squeeze")
def squeeze(flow: Flow, call: Call) -> Any:
    """Axes of size one removed; an axis that shrinks to one must not be."""
    x = flow.operand(call.operands[0])
    asked = call.get(1, "dim")
    given = range(x.ndim) if asked is None else asked if isinstance(asked, (tuple, list)) else [asked]
    axes = tuple(axis % x.ndim for axis in given if x.shape[axis % x.ndim] == 1)

    def change(node: fx.Node, solution: Any) -> None:
        if any((new == 1) != (old == 1) for new, old in zip(solution.shape(x), x.shape, strict=True)):
            node.args, node.kwargs = (node.args[0], axes), {}
            if node.op == "call_function":
                node.target = torch.squeeze

    flow.edits.append((call.node, change))
    return flow.moved(x, call.shape, lambda array: array.squeeze(axes))


@rule("expand", "broadcast_to", "expand_as")
def expand(flow: Flow, call: Call) -> Any:
    """Axes of size one repeated without copying.

    A tensor without channels of its own (a gate of one channel) gets the channels of the tensor that it is expanded to.
    """
    x = flow.operand(call.operands[0])
    missing = len(call.shape) - x.ndim
    shape = (1,) * missing + x.shape
    grown = [axis for axis, (old, new) in enumerate(zip(shape, call.shape, strict=True)) if old == 1 and new > 1]
    alone = not varying_axes(flow.normal(x).atoms)
    if call.name == "expand_as":
        other = flow.settled(flow.operand(call.operands[1]))
        if alone:
            flow.pin(x, "it is spread over the channels of another tensor")
            return Value(call.shape, other.atoms, widened(x.known, missing), widened(x.const, missing))
        out = flow.moved(x, call.shape, lambda array: widened(array, missing))
        if set(varying_axes(other.atoms)) & set(grown):
            flow.atoms.pin(other.atoms, "its shape is taken")
        else:
            flow.atoms.unite(out.atoms, other.atoms)
        return flow.normal(out)
    out = flow.moved(x, call.shape, lambda array: widened(array, missing))
    if alone and call.meta.dtype.is_floating_point and [axis for axis in grown if axis] == [1] and len(call.shape) > 2:
        flow.pin(x, "it is spread over channels")
        extents = [size if axis == 1 else 1 for axis, size in enumerate(call.shape)]
        out = replace(out, atoms=flow.atoms.fresh(*extents), parent=None, move=None)
    resized(flow, call, out, 1)
    return out


@rule("roll")
def roll(flow: Flow, call: Call) -> Any:
    """Axes rotated; along channels, where the shift would have to follow, they stay."""
    x = flow.settled(flow.operand(call.operands[0]))
    axes = call.get(2, "dims", ())
    axes = [axis % x.ndim for axis in (axes if isinstance(axes, (tuple, list)) else (axes,))]
    if not axes or any(extents.shape[axis] > 1 for extents in (x.atoms, x.known) for axis in axes):
        return flow.unknown(call, "its channels are rotated")
    return flow.moved(x, call.shape, lambda array: array)


@rule("pixel_shuffle")
def pixel_shuffle(flow: Flow, call: Call) -> Any:
    """(C r^2, H, W) to (C, H r, W r): the r^2 channels of one output go together."""
    x, block = flow.settled(flow.operand(call.operands[0])), call.get(1, "upscale_factor") ** 2
    if x.ndim != 4:
        return flow.unknown(call, "pixel_shuffle without a batch axis")
    atoms = flow.channels(x, 1, "pixel_shuffle reads it").reshape(1, -1, block, 1)
    flow.atoms.tie(atoms, 2, "pixel_shuffle interleaves them")
    known, const = flow.plain(x).constants(1)
    known, const = known.reshape(1, -1, block, 1), const.reshape(1, -1, block, 1)
    return flow.normal(Value(call.shape, atoms[:, :, :1], *collapse(known, const, [2])))


def resized(flow: Flow, call: Call, out: Value, position: int, first_axis: int = 0) -> None:
    """Adapt the sizes that a node is given from ``args[position]`` on, as numbers or as one sequence."""

    def change(node: fx.Node, solution: Any) -> None:
        name = next((key for key in ("size", "shape", "sizes") if key in node.kwargs), None)
        given: Any = node.kwargs[name] if name else node.args[position:]
        packed = name is None and len(given) == 1 and isinstance(given[0], (tuple, list))
        given = given[0] if packed else given
        sizes = tuple(solution.resize(node, size, out, first_axis + k) for k, size in enumerate(given))
        if name:
            node.update_kwarg(name, sizes)
        else:
            node.args = node.args[:position] + ((sizes,) if packed else sizes)

    flow.edits.append((call.node, change))
