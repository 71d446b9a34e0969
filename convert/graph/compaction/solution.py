"""Which atoms stay, and what that makes of shapes and sizes."""

from __future__ import annotations

import math
import operator
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx

from .atoms.domain import Value

__all__ = ["Solution", "scaled"]


@dataclass
class Solution:
    """The atoms that stay.

    Attributes:
        roots: For every atom the representative of its set.
        needed: For every representative whether an output depends on its content.
        alive: For every representative whether the set stays: what is needed, and fillers.
        groups: New numbers of groups, by path of the weight.
    """

    roots: Tensor
    needed: Tensor
    alive: Tensor
    groups: dict[str, int] = field(default_factory=dict)

    def stays(self, atoms: Tensor) -> Tensor:
        """Whether each of the atoms stays."""
        return self.alive[self.roots[atoms]]

    def counts(self, atoms: Tensor) -> Tensor:
        """Whether the content of each of the atoms is needed."""
        return self.needed[self.roots[atoms]]

    def alive_axes(self, value: Value) -> list[Tensor | None]:
        """For each axis of a value the elements that stay, or None where all do."""
        stays = self.stays(value.atoms)
        if not stays.numel():
            return [None] * stays.ndim
        masks: list[Tensor | None] = []
        for axis, size in enumerate(value.shape):
            along = stays.movedim(axis, 0).reshape(stays.shape[axis], -1).any(1)
            masks.append(None if stays.shape[axis] == 1 or along.all() else along.expand(size))
        return masks

    def shape(self, value: Value) -> tuple[int, ...]:
        """The shape of a value without what goes."""
        masks = self.alive_axes(value)
        return tuple(size if m is None else int(m.sum()) for size, m in zip(value.shape, masks, strict=True))

    def is_product(self, value: Value) -> bool:
        """Whether what stays of a value is again a tensor: a product of positions along its axes."""
        stays = self.stays(value.atoms)
        expected = torch.ones_like(stays)
        for axis, mask in enumerate(self.alive_axes(value)):
            if mask is not None:
                expected = expected & mask.reshape([-1 if k == axis else 1 for k in range(value.ndim)])
        return torch.equal(stays, expected)

    def resize(self, node: fx.Node, size: Any, value: Value, axis: int) -> Any:
        """An argument of ``node`` that asks for the size of an axis of ``value``, after the removal."""
        before, after = value.shape[axis], self.shape(value)[axis]
        if before == after or (isinstance(size, int) and size == -1):
            return size
        if isinstance(size, int):
            return after
        with node.graph.inserting_before(node):
            return scaled(node.graph, size, after, before)


def scaled(graph: fx.Graph, size: fx.Node, numerator: int, denominator: int) -> fx.Node:
    """``size * numerator // denominator`` in lowest terms, in a graph."""
    if numerator == denominator:
        return size
    common = math.gcd(numerator, denominator)
    product = graph.call_function(operator.mul, (size, numerator // common))
    return graph.call_function(operator.floordiv, (product, denominator // common))
