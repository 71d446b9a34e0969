"""Operations that take a part of an axis, or cut it into parts."""

from __future__ import annotations

import operator
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, fx

from ..atoms.arrays import varying_axes
from ..atoms.calls import Call
from ..atoms.domain import Value
from ..atoms.flow import Flow
from .elementwise import combine
from .lookup import rule

__all__: list[str] = []


@rule("chunk", "split", "split_with_sizes", "tensor_split", "unsafe_chunk", "unsafe_split", "unsafe_split_with_sizes")
def split(flow: Flow, call: Call) -> Any:
    """Parts of an axis."""
    x = flow.operand(call.operands[0])
    axis = call.get(2, "dim", 0) % x.ndim
    parts: list[Value] = []
    start = 0
    for meta in call.meta:
        stop = start + meta.shape[axis]
        parts.append(flow.moved(x, meta.shape, _cut(axis, slice(start, stop))))
        start = stop

    def change(node: fx.Node, solution: Any) -> None:
        sizes = [solution.shape(part)[axis] for part in parts]
        if sizes != [part.shape[axis] for part in parts]:
            node.op, node.target = "call_function", torch.split
            node.args, node.kwargs = (node.args[0], sizes, axis), {}

    flow.edits.append((call.node, change))
    return tuple(parts)


@rule("glu")
def glu(flow: Flow, call: Call) -> Any:
    """One half of the channels times the sigmoid of the other half."""
    x = flow.operand(call.operands[0])
    axis = call.get(1, "dim", -1) % x.ndim
    half = x.shape[axis] // 2
    halves = [flow.moved(x, call.shape, _cut(axis, slice(start, start + half))) for start in (0, half)]
    return combine(flow, halves, call.shape, lambda a, b: a * torch.sigmoid(b))


@rule("unbind")
def unbind(flow: Flow, call: Call) -> Any:
    """The elements of an axis as tensors."""
    x = flow.operand(call.operands[0])
    axis = call.get(1, "dim", 0) % x.ndim
    return tuple(flow.moved(x, meta.shape, _cut(axis, k)) for k, meta in enumerate(call.meta))


@rule("select", "narrow", "slice")
def part(flow: Flow, call: Call) -> Any:
    """One element, or a range, of an axis."""
    x = flow.operand(call.operands[0])
    axis = call.get(1, "dim", 0) % x.ndim
    first = call.get(2, "index" if call.name == "select" else "start")
    item: Any = first
    if call.name == "narrow":
        item = slice(first, first + call.get(3, "length"))
    elif call.name == "slice":
        item = slice(first, call.get(3, "end"), call.get(4, "step", 1))
    before, after = [slice(None)] * axis, [slice(None)] * (x.ndim - axis - 1)
    computed = any(isinstance(k, fx.Node) for k in (*call.node.args[1:], *call.node.kwargs.values()))
    return _indexed(flow, call, x, [*before, item, *after], [*before, call.node if computed else item, *after])


@rule("index_select")
def chosen(flow: Flow, call: Call) -> Any:
    """Inputs by a table of positions, as a compacted network begins: what nobody reads leaves the table."""
    x, axis, table = call.operands[0], call.get(1, "dim"), call.get(2, "index")
    if len(call.operands) != 2 or not x.from_inputs or not isinstance(table, Value) or table.leaf is None:
        return flow.unknown(call, "an index that is not followed")
    wide = [-1 if k == axis % x.ndim else 1 for k in range(x.ndim)]
    atoms = flow.leaf_axis(table, 0).reshape(wide)
    return replace(x.forget(), shape=call.shape, atoms=atoms, from_inputs=False, parent=None, move=None)


@rule("getitem", "__getitem__")
def index(flow: Flow, call: Call) -> Any:
    """``x[...]`` with numbers, slices, None and an ellipsis."""
    x, item = call.args
    if not isinstance(x, Value):
        return x[item]
    written = list(item) if isinstance(item, tuple) else [item]
    items = [_resolved(flow, k) for k in written]
    if not all(k is None or k is Ellipsis or isinstance(k, slice) or type(k) is int for k in items):
        return flow.unknown(call, "an index that is not followed")
    x = flow.operand(x)
    given = sum(k is not None and k is not Ellipsis for k in items)
    fill = [slice(None)] * (x.ndim - given)
    where = items.index(Ellipsis) if Ellipsis in items else len(items)
    items, written = (k[:where] + fill + k[where + 1 :] for k in (items, written))
    return _indexed(flow, call, x, items, written)


def _resolved(flow: Flow, item: Any) -> Any:
    """An item of an index, its bounds as they are in the example run."""
    if isinstance(item, slice):
        return slice(*(flow.values[k] if isinstance(k, fx.Node) else k for k in (item.start, item.stop, item.step)))
    return item


def _indexed(flow: Flow, call: Call, x: Value, items: list[Any], written: list[Any]) -> Any:
    """A basic index, every axis named; ``written`` are the items as the graph has them, with computed bounds."""
    pairs = [(item, own) for item, own in zip(items, written, strict=True) if item is not None]
    computed = [axis for axis, (item, own) in enumerate(pairs) if item != own]
    if set(computed) & set(varying_axes(x.atoms)) and call.operands[0].leaf is None:
        flow.unknowns.append((call.node, "a part of a computed size is taken"))
    x = flow.tie(x, computed, "a part of a computed size is taken")

    def move(array: Tensor) -> Tensor:
        extents = iter(array.shape)
        whole = [k if k is None or next(extents) > 1 else 0 if type(k) is int else slice(None) for k in items]
        return array[tuple(whole)]

    out = flow.moved(x, call.shape, move)

    def change(node: fx.Node, solution: Any) -> None:
        masks, sizes = iter(solution.alive_axes(x)), iter(x.shape)
        new = [k if k is None else _moved_item(k, next(sizes), next(masks)) for k in written]
        if new != written:
            node.op, node.target = "call_function", operator.getitem
            node.args, node.kwargs = (node.args[0], tuple(new)), {}

    along = enumerate(k for k in items if k is not None)
    if any(isinstance(k, slice) and k.step not in (None, 1) and x.atoms.shape[axis] > 1 for axis, k in along):
        return flow.unknown(call, "channels are taken in steps")
    flow.edits.append((call.node, change))
    return out


def _moved_item(item: Any, size: int, alive: Tensor | None) -> Any:
    """The item after elements of its axis went; where none did, it stays."""
    if alive is None or alive.all():
        return item
    before = [0, *alive.long().cumsum(0).tolist()]
    if type(item) is int:
        return before[item % size]
    start, stop, _ = item.indices(size)
    return item if item == slice(None) else slice(before[start], before[max(stop, start)])


def _cut(axis: int, item: int | slice) -> Callable[[Tensor], Tensor]:
    """The movement to an element or a part of an axis; an array of one element there stands for all."""

    def move(array: Tensor) -> Tensor:
        whole = slice(None) if isinstance(item, slice) else 0
        return array[(slice(None),) * axis + (item if array.shape[axis] > 1 else whole,)]

    return move
