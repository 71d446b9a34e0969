"""Settling the worklist: values that vary along several axes, such as channels viewed as (groups, channels of a group).

What remains of such a value may not be a tensor. Where all movements around it amount to a choice of channels, as in a
channel shuffle, one index replaces them (a shortcut). Elsewhere the elements along its inner axes are tied.
"""

from __future__ import annotations

import math

import torch
from torch import fx

from bensemble.torch_internals import pytree

from .atoms.arrays import varying_axes
from .atoms.domain import Shortcut, Value
from .atoms.flow import Flow

__all__ = ["settle_worklist"]

#: Values with more elements are not probed.
MOST_ELEMENTS = 1 << 25


def settle_worklist(flow: Flow) -> None:
    """Find the shortcuts, and tie values that have none. Repeats, because every tie may settle other values."""
    while True:
        flow.shortcuts.clear()
        if not _one_round(flow):
            return


def _one_round(flow: Flow) -> bool:
    """Visit the unsettled values up to the first that has to be tied; False when none had to."""
    nodes: dict[int, fx.Node] = {}
    for node, value in flow.values.items():
        if isinstance(value, Value):
            nodes.setdefault(id(value), node)
    reached: set[int] = set()
    for node, value in flow.values.items():
        for leaf in pytree.tree_leaves(value):
            if not isinstance(leaf, Value) or leaf.parent is None or _is_settled(flow, leaf.parent):
                continue
            reached.add(id(leaf.parent))
            if not _is_settled(flow, leaf):
                continue
            shortcut = _shortcut(flow, leaf, nodes) if leaf is value else None
            if shortcut is None and leaf is value:
                return _tie(flow, leaf.parent)
            if shortcut is not None:
                flow.shortcuts[node] = shortcut
    for value in flow.worklist:
        if id(value) not in reached and not _is_settled(flow, value):
            return _tie(flow, value)
    for entry in flow.leaves.values():
        if entry.value is not None and not _is_settled(flow, entry.value):
            return _tie(flow, entry.value)
    return False


def _is_settled(flow: Flow, value: Value) -> bool:
    """Whether a value varies along one axis at most."""
    return len(varying_axes(flow.atoms.find(value.atoms))) <= 1


def _tie(flow: Flow, value: Value) -> bool:
    """Settle a value; True when that changed something."""
    before = flow.atoms.find(value.atoms)
    flow.settled(value)
    return not torch.equal(before, flow.atoms.find(value.atoms))


def _shortcut(flow: Flow, value: Value, nodes: dict[int, fx.Node]) -> Shortcut | None:
    """The choice of channels that leads from the last settled value to this one; None where more happened."""
    moves, through = [value.move], []
    source = value.parent
    while source is not None and not _is_settled(flow, source):
        moves.append(source.move)
        through.append(source)
        source = source.parent
    if source is None or id(source) not in nodes or math.prod(source.shape) > MOST_ELEMENTS:
        return None
    varying = varying_axes(flow.atoms.find(source.atoms))
    if len(varying) != 1 or source.ndim != value.ndim:
        return None
    axis = varying[0]
    places = torch.arange(source.shape[axis]).reshape([-1 if k == axis else 1 for k in range(source.ndim)])
    everything = torch.arange(math.prod(source.shape)).reshape(source.shape)
    moved = everything
    for move in reversed(moves):
        if move is None:
            return None
        places, moved = move(places), move(moved)
    if any(size > 1 and k != axis for k, size in enumerate(places.shape)) and varying_axes(places) != [axis]:
        return None
    for k in range(places.ndim):
        places = places if k == axis else places.narrow(k, 0, 1)
    positions = places.reshape(-1).clone()
    if moved.shape != value.shape or not torch.equal(moved, everything.index_select(axis, positions)):
        return None
    return Shortcut(nodes[id(source)], tuple(through), axis, positions)
