"""The state of the forward pass of the compaction, and what the rules may do with it.

Each operation is a :class:`.calls.Call`. Its rule returns what is known about the result. Without a rule, the operands
are pinned: nothing that an unknown operation reads may change.
"""

from __future__ import annotations

from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import torch
from torch import Tensor, fx, nn

from bensemble.torch_internals import pytree

from ...capture import Capture, TensorMeta
from .arrays import nothing_known, varying_axes
from .calls import Call
from .domain import LeafRef, Partition, Shortcut, Value
from .readers import GroupSizes, Reader

__all__ = ["Flow", "Leaf"]

#: Tensors with more elements than this get no atoms of their own where an operation uses them element by element.
MOST_ELEMENTS = 1 << 24


@dataclass
class Leaf:
    """A parameter or buffer of the model.

    Attributes:
        path: One of its paths.
        tensor: The tensor.
        uses: Number of nodes that read it.
        frozen: Set where an operation that is not followed reads it.
        value: Its description once an operation uses it element by element.
        axes: Atoms along some of its axes once an operation uses it as a matrix.
    """

    path: str
    tensor: Tensor
    uses: int = 0
    frozen: bool = False
    value: Value | None = None
    axes: dict[int, Tensor] = field(default_factory=dict)


class Flow:
    """Atoms, values of nodes, leaves and readers, and the nodes that have to be rewritten for the smaller model."""

    def __init__(self, captured: Capture, model: nn.Module) -> None:
        self.captured = captured
        self.atoms = Partition()
        self.values: dict[fx.Node, Any] = {}
        self.leaves: dict[str, Leaf] = {}
        self.readers: list[Reader] = []
        self.groups: list[GroupSizes] = []
        #: Nodes whose arguments depend on sizes, with a function ``change(node, solution)`` that adapts them.
        self.edits: list[tuple[fx.Node, Callable[..., None]]] = []
        #: Values that vary along several axes and are not settled yet.
        self.worklist: list[Value] = []
        #: Parameters and buffers by each of their paths.
        self.tensors: dict[str, Tensor] = {
            **dict(model.named_parameters(remove_duplicate=False)),
            **dict(model.named_buffers(remove_duplicate=False)),
        }
        #: Nodes whose values one index makes from an earlier node, instead of the movements between them.
        self.shortcuts: dict[fx.Node, Shortcut] = {}
        #: Operations that no rule follows, with the reason.
        self.unknowns: list[tuple[fx.Node, str]] = []
        #: Nodes that hand out sizes, with the tensor whose size they tell.
        self.sizes: list[tuple[fx.Node, Value]] = []
        #: What else a report says.
        self.notes: list[str] = []
        self._first_path: dict[int, str] = {}

    # -- leaves

    def leaf(self, path: str, uses: int = 1) -> Value:
        """The value of a parameter or buffer that so many operations read; tied ones share one leaf."""
        tensor = self.tensors[path]
        first = self._first_path.setdefault(id(tensor), path)
        if first not in self.leaves:
            self.leaves[first] = Leaf(first, tensor)
        self.leaves[first].uses += uses
        known, const = nothing_known(tensor.ndim)
        ref = LeafRef(first, tuple(range(tensor.ndim)))
        return Value(tuple(tensor.shape), torch.zeros_like(known, dtype=torch.int64), known, const, leaf=ref)

    def aliases(self, path: str) -> list[str]:
        """All paths of a leaf."""
        return [other for other, tensor in self.tensors.items() if tensor is self.tensors[path]]

    def leaf_axis(self, value: Value, axis: int) -> Tensor:
        """Atoms along one axis of a leaf that is used as a matrix."""
        assert value.leaf is not None
        leaf, own = self.leaves[value.leaf.path], value.leaf.axes[axis]
        if own not in leaf.axes:
            leaf.axes[own] = self.atoms.fresh(value.shape[axis])
            self._pin_mixed_use(leaf)
        return leaf.axes[own]

    def freeze(self, path: str) -> None:
        """Keep a parameter or buffer as it is."""
        value = self.leaf(path)
        assert value.leaf is not None
        self.leaves[value.leaf.path].frozen = True

    def place_for_bias(self, path: str) -> str:
        """Where a bias beside a weight belongs: ``<module>.bias`` where a module keeps that free."""
        parent, _, name = path.rpartition(".")
        return f"{parent}.bias".lstrip(".") if name == "weight" else f"{path}_bias"

    def operand(self, value: Value) -> Value:
        """A value ready for use element by element: leaves get atoms and constants here."""
        if value.leaf is None:
            return value
        leaf = self.leaves[value.leaf.path]
        if leaf.value is None:
            leaf.value = self._describe(leaf)
            self._pin_mixed_use(leaf)
        own, axes = leaf.value, value.leaf.axes
        return Value(value.shape, own.atoms.permute(axes), own.known.permute(axes), own.const.permute(axes))

    def _pin_mixed_use(self, leaf: Leaf) -> None:
        """Keep a leaf that is used both as a matrix and element by element."""
        if leaf.value is not None and leaf.axes:
            for atoms in (leaf.value.atoms, *leaf.axes.values()):
                self.atoms.pin(atoms, f"'{leaf.path}' is used in different ways")

    def _describe(self, leaf: Leaf) -> Value:
        tensor, shape = leaf.tensor, tuple(leaf.tensor.shape)
        if tensor.numel() > MOST_ELEMENTS or tensor.is_complex():
            return self.opaque(shape, f"'{leaf.path}' is too large to follow")
        const = tensor.detach().to("cpu", torch.float64)
        known = torch.ones_like(const, dtype=torch.bool)
        if not tensor.is_floating_point():
            return replace(self.opaque(shape, f"'{leaf.path}' holds whole numbers"), known=known, const=const)
        return Value(shape, self.atoms.fresh(*shape), known, const)

    # -- what rules may do

    def opaque(self, shape: Sequence[int], reason: str) -> Value:
        """A value about which nothing is known. All its elements stay."""
        atoms = self.atoms.fresh(*(1,) * len(shape))
        self.atoms.pin(atoms, reason)
        return Value(tuple(shape), atoms, *nothing_known(len(shape)))

    def opaque_results(self, meta: Any, reason: str) -> Any:
        """What a node returned, with opaque values for its tensors."""
        return pytree.tree_map_only(TensorMeta, lambda tensor: self.opaque(tensor.shape, reason), meta)

    def pin(self, value: Value, reason: str) -> None:
        """Keep every element of a value."""
        self.atoms.pin(self.operand(value).atoms, reason)

    def tie(self, value: Value, axes: Sequence[int], reason: str) -> Value:
        """Remove the elements along some axes together or not at all; returns the value with fewer atoms."""
        atoms = value.atoms
        for axis in axes:
            self.atoms.tie(atoms, axis, reason)
            atoms = self.atoms.find(atoms).narrow(axis, 0, 1)
        return replace(value, atoms=atoms)

    def normal(self, value: Value) -> Value:
        """The value with as few atoms as say the same."""
        atoms = self.atoms.find(value.atoms)
        varying = varying_axes(atoms)
        atoms = atoms[tuple(slice(None) if axis in varying else slice(1) for axis in range(atoms.ndim))]
        known, const = (value.known, value.const) if value.known.any() else nothing_known(value.ndim)
        return replace(value, atoms=atoms, known=known, const=const)

    def settled(self, value: Value, prefer: Collection[int] = ()) -> Value:
        """The value with atoms that vary along one axis at most, as an arithmetic operation needs it.

        Of several axes a preferred one wins, else the outermost: attention heads rather than the elements of a head.
        """
        value = self.normal(value)
        varying = varying_axes(value.atoms)
        kept = next((axis for axis in varying if axis in prefer), varying[0] if varying else 0)
        others = [axis for axis in varying if axis != kept]
        return self.normal(self.tie(value, others, "it varies along an outer axis too")) if others else value

    def channels(self, value: Value, axis: int, reason: str) -> Tensor:
        """Atoms along one axis of a value, for an operation that mixes nothing else."""
        value = self.settled(self.operand(value))
        varying = varying_axes(value.atoms)
        if varying and varying != [axis]:
            self.atoms.pin(value.atoms, reason)
            value = self.tie(value, varying, reason)
        return value.atoms.reshape(-1).expand(value.shape[axis]).clone()

    def unknown(self, call: Call, reason: str, hides_weights: bool = False) -> Any:
        """Pin all operands; the results are opaque.

        The report mentions it where it may keep channels: of the operands, or of weights that the operation holds.
        """
        values = [self.operand(value) for value in call.operands]
        if hides_weights or any(varying_axes(self.atoms.find(value.atoms)) for value in values):
            self.unknowns.append((call.node, reason))
        for value in values:
            self.pin(value, reason)
        return self.opaque_results(call.meta, reason)

    def plain(self, value: Value) -> Value:
        """The value without patterned constants, which a report notes where there are any."""
        if value.patterned and (value.known & (value.const != 0)).any():
            self.notes.append("constants differ at the borders, by zero padding, so that some of their channels stay")
        return value.plain()

    def moved(self, value: Value, shape: Sequence[int], move: Callable[[Tensor], Tensor]) -> Value:
        """The value after an operation that only rearranges elements."""
        value = self.operand(value)
        moved = self.normal(replace(value.mapped(shape, move), parent=value, move=move))
        if len(varying_axes(moved.atoms)) > 1:
            self.worklist.append(moved)
        return moved
