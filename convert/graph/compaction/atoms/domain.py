"""The abstract domain of the compaction: what is known about every element of every tensor of a network.

An element along the axes of a tensor belongs to an *atom*: the smallest set of elements, across all tensors, that can
only be removed together. Adding two tensors unites their atoms; a convolution starts new ones. An element is *known*
when it has the same value for every input, every example and every position: its value is then a constant.

Atoms, known flags and constants are tensors that broadcast to the shape of the value they describe, so one row of
channels describes an image of any size, and operations that only move data are applied to them as they are.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Tensor, fx

from .arrays import collapse, nothing_known

__all__ = ["LeafRef", "Partition", "Shortcut", "Value"]


class Partition:
    """Disjoint sets of atoms, with the reasons why some of them must stay.

    Sets are united by hooking the larger root under the smaller one, all pairs of a call at once.
    """

    def __init__(self) -> None:
        self._parent = torch.arange(1024)
        self._count = 0
        #: (atoms, why they stay) in the order of discovery.
        self.pins: list[tuple[Tensor, str]] = []
        #: (atoms, why they stay or go together).
        self.ties: list[tuple[Tensor, str]] = []

    def __len__(self) -> int:
        return self._count

    def fresh(self, *shape: int) -> Tensor:
        """New atoms, each in a set of its own."""
        start, self._count = self._count, self._count + math.prod(shape)
        if self._count > len(self._parent):
            grown = torch.arange(max(2 * len(self._parent), self._count))
            grown[: len(self._parent)] = self._parent
            self._parent = grown
        return torch.arange(start, self._count).reshape(shape)

    def find(self, atoms: Tensor) -> Tensor:
        """The representative of every atom's set."""
        flat = atoms.reshape(-1)
        roots = self._parent[flat]
        while True:
            above = self._parent[roots]
            if torch.equal(above, roots):
                self._parent[flat] = roots
                return roots.reshape(atoms.shape)
            roots = above

    def unite(self, a: Tensor, b: Tensor) -> None:
        """Unite the sets of ``a`` and ``b`` element by element, after broadcasting."""
        a, b = (t.reshape(-1) for t in torch.broadcast_tensors(a, b))
        while True:
            a, b = self.find(a), self.find(b)
            differ = a != b
            if not differ.any():
                return
            a, b = a[differ], b[differ]
            self._parent[torch.maximum(a, b)] = torch.minimum(a, b)

    def tie(self, atoms: Tensor, axis: int, reason: str) -> None:
        """Unite all atoms along an axis."""
        if atoms.shape[axis] > 1:
            self.unite(atoms, atoms.narrow(axis, 0, 1))
            self.ties.append((atoms.reshape(-1), reason))

    def pin(self, atoms: Tensor, reason: str) -> None:
        """Keep these atoms, and all that they are united with, now or later."""
        self.pins.append((self.find(atoms.reshape(-1)).unique(), reason))


@dataclass(frozen=True)
class LeafRef:
    """A value that is a parameter or buffer, possibly with its axes permuted.

    Attributes:
        path: Where the module holds it, such as ``features.0.weight``.
        axes: The tensor's own axis behind each axis of the value.
    """

    path: str
    axes: tuple[int, ...]


@dataclass(frozen=True)
class Value:
    """What is known about one tensor.

    Attributes:
        shape: Its shape for the example inputs.
        atoms: int64, broadcasts to ``shape``.
        known: bool, broadcasts to ``shape``.
        const: float64, of the shape of ``known``; without meaning where that is False.
        patterned: The constants hold up to one factor per position, the same for all channels (after an average over
            zero padding, for example).
        stochastic: Non-negative, and sums to one over the last axis.
        from_inputs: Computed from the model's inputs alone, without any weight.
        leaf: Set for parameters and buffers. Their atoms are made on first use, by ``Flow.operand``.
        parent: The value that this one only rearranges, if any.
        move: How: takes an array that broadcasts to the parent's shape to one that broadcasts to this shape.
    """

    shape: tuple[int, ...]
    atoms: Tensor
    known: Tensor
    const: Tensor
    patterned: bool = False
    stochastic: bool = False
    from_inputs: bool = False
    leaf: LeafRef | None = None
    parent: Value | None = None
    move: Callable[[Tensor], Tensor] | None = None

    @property
    def ndim(self) -> int:
        """Number of axes."""
        return len(self.shape)

    def mapped(self, shape: Sequence[int], change: Callable[[Tensor], Tensor]) -> Value:
        """A value of another shape, with ``change`` applied to atoms, known flags and constants."""
        arrays = change(self.atoms), change(self.known), change(self.const)
        return Value(tuple(shape), *arrays, patterned=self.patterned, from_inputs=self.from_inputs)

    def forget(self) -> Value:
        """The same value with nothing known about its elements."""
        known, const = nothing_known(self.ndim)
        return replace(self, known=known, const=const, patterned=False, stochastic=False)

    def plain(self) -> Value:
        """The same value without patterned constants: only zeros stay known."""
        return replace(self, known=self.known & (self.const == 0), patterned=False) if self.patterned else self

    def constants(self, axis: int) -> tuple[Tensor, Tensor]:
        """Known flags and constants along one axis, for elements that are uniform over all other axes."""
        known, const = collapse(self.known, self.const, [k for k in range(self.ndim) if k != axis])
        size = self.shape[axis]
        return known.reshape(-1).expand(size).clone(), const.reshape(-1).expand(size).clone()


@dataclass(frozen=True)
class Shortcut:
    """A value that is ``source.index_select(axis, positions)``.

    Attributes:
        source: The node before the movements.
        through: The values in between, which vary along several axes.
        axis: The axis of the channels.
        positions: Channels of the source, in order.
    """

    source: fx.Node
    through: tuple[Value, ...]
    axis: int
    positions: Tensor
