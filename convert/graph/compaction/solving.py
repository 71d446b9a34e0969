"""Which atoms stay: the smallest set that reproduces every output.

Backward liveness to a fixpoint: what is pinned is needed; what a needed output reads is needed, unless it is constant,
and where zero padding asks for a carrier, one constant is. Then what the shapes ask for stays too, as a filler that
nobody reads: groups of equal size, and at least one element along every axis.
"""

from __future__ import annotations

import math
from collections import Counter

import torch
from torch import Tensor

from bensemble.torch_internals import pytree

from .atoms.domain import Value
from .atoms.flow import Flow
from .atoms.readers import Reader
from .solution import Solution
from .worklist import settle_worklist

__all__ = ["settle", "solve"]

#: Unread inputs are left out by an index only where that removes at least this share of all parameters that stay.
LEAST_SELECTION = 0.05


def settle(flow: Flow) -> None:
    """What all uses of a weight agree on, and which channels can only go together."""
    _agree_on_shared_weights(flow)
    _forget_unfoldable(flow)
    settle_worklist(flow)


def solve(flow: Flow) -> Solution:
    """Decide what stays."""
    settle(flow)
    roots = flow.atoms.find(torch.arange(len(flow.atoms)))
    needed = torch.zeros(len(roots), dtype=torch.bool)
    for atoms, _ in flow.atoms.pins:
        needed[roots[atoms]] = True
    solution = Solution(roots, needed, needed.clone())
    search = _Search(flow, solution)
    search.run()
    if search.drop_small_selections():
        search.run()
    for reader in flow.readers:
        if reader.num_groups > 1:
            rows = reader.grouped(solution.stays(reader.inputs)).any(1)
            solution.groups[reader.weight] = int(rows.sum())
    return solution


class _Search:
    """The two fixpoints: first what is needed, then the fillers."""

    def __init__(self, flow: Flow, solution: Solution) -> None:
        self.flow = flow
        self.solution = solution
        leaves = pytree.tree_leaves(list(flow.values.values()))
        values = [leaf for leaf in leaves if isinstance(leaf, Value) and leaf.leaf is None and all(leaf.shape)]
        self.values = [value.atoms.reshape(-1) for value in values]
        self.values += [reader.inputs for reader in flow.readers if reader.selects]

    def run(self) -> None:
        """Find both."""
        while self._read() or self._carry():
            pass
        self.solution.alive |= self.solution.needed
        while self._equal_groups() or self._no_empty_axis():
            pass

    def drop_small_selections(self) -> bool:
        """Read the whole input again where leaving parts of it out saves little."""
        solution, changed = self.solution, False
        total = _remaining(self.flow, solution)
        for reader in self.flow.readers:
            if reader.selects:
                unread = int((~solution.stays(reader.inputs)).sum())
                saved = unread * int(solution.stays(reader.outputs).sum())
                if saved < LEAST_SELECTION * total:
                    changed |= self._need(reader.inputs)
        return changed

    def _need(self, atoms: Tensor) -> bool:
        """Mark atoms as needed; True if some were not."""
        solution = self.solution
        fresh = not bool(solution.counts(atoms).all())
        solution.needed[solution.roots[atoms]] = True
        return fresh

    def _fill(self, atoms: Tensor) -> None:
        self.solution.alive[self.solution.roots[atoms]] = True

    def _read(self) -> bool:
        """What needed outputs read is needed."""
        changed = False
        for reader in reversed(self.flow.readers):
            needed = reader.needed(self.solution.counts(reader.outputs))
            changed |= self._need(reader.inputs[needed])
        return changed

    def _equal_groups(self) -> bool:
        """Groups that stay keep as many channels as the fullest of them."""
        changed = False
        for sizes in self.flow.groups:
            inputs, outputs = self.solution.stays(sizes.inputs), self.solution.stays(sizes.outputs)
            rows = inputs.any(1) | outputs.any(1)
            for atoms, stays in ((sizes.inputs, inputs), (sizes.outputs, outputs)):
                most = max(int(stays.sum(1).max()), 1)
                for row in rows.nonzero().flatten().tolist():
                    missing = most - int(stays[row].sum())
                    if missing > 0:
                        self._fill(atoms[row][~stays[row]][:missing])
                        changed = True
        return changed

    def _no_empty_axis(self) -> bool:
        """A tensor keeps at least one element."""
        changed = False
        for atoms in self.values:
            if not self.solution.stays(atoms).any():
                self._fill(atoms[:1])
                changed = True
        return changed

    def _carry(self) -> bool:
        """Where constants go that a bias cannot replace, one of them stays: the one that helps most."""
        wanted: Counter[int] = Counter()
        pending: list[Reader] = []
        for reader in self.flow.readers:
            candidates = self._missing_carriers(reader)
            if candidates is not None:
                pending.append(reader)
                wanted.update(self.solution.roots[reader.inputs[candidates]].unique().tolist())
        for reader in pending:
            candidates = self._missing_carriers(reader)
            if candidates is not None:
                roots = self.solution.roots[reader.inputs[candidates]].tolist()
                sizes = reader.const[candidates].abs().tolist()
                ranks = [(wanted[root], size) for root, size in zip(roots, sizes, strict=True)]
                best = int(candidates[ranks.index(max(ranks))])
                self._need(reader.inputs[best : best + 1])
        return bool(pending)

    def _missing_carriers(self, reader: Reader) -> Tensor | None:
        """Inputs that could carry the constants of the first group that lacks a carrier; None if none does."""
        if not reader.carried:
            return None
        inputs, outputs = self.solution.counts(reader.inputs), self.solution.counts(reader.outputs)
        carriers = reader.carriers()
        lacking = reader.grouped(reader.shares(inputs, outputs)).any(1) & ~reader.grouped(inputs & carriers).any(1)
        if not lacking.any():
            return None
        group = int(lacking.nonzero()[0])
        size = reader.inputs.numel() // reader.num_groups
        return carriers[group * size : (group + 1) * size].nonzero().flatten() + group * size


def _remaining(flow: Flow, solution: Solution) -> int:
    """Number of elements of the leaves that stay, about right for grouped convolutions."""
    total = 0
    for leaf in flow.leaves.values():
        shape: list[int] = list(leaf.tensor.shape if leaf.value is None else solution.shape(leaf.value))
        for axis, atoms in leaf.axes.items():
            shape[axis] = int(solution.stays(atoms).sum())
        total += math.prod(shape)
    return total


def _agree_on_shared_weights(flow: Flow) -> None:
    """A weight that several operations use is cut once, so they must agree on what goes and what it is worth."""
    for leaf in flow.leaves.values():
        if leaf.frozen:
            for atoms in (*leaf.axes.values(), *([leaf.value.atoms] if leaf.value is not None else [])):
                flow.atoms.pin(atoms, f"'{leaf.path}' is read by an operation that is not followed")
    # Inputs of one use may be outputs of another, as in tied autoencoders; then nothing goes.
    ways = Counter(path for path, _ in {(reader.weight, reader.out_axis) for reader in flow.readers})
    first: dict[tuple[str, int], Reader] = {}
    for reader in flow.readers:
        other = first.setdefault((reader.weight, reader.out_axis), reader)
        leaf = flow.leaves[reader.weight]
        if leaf.value is not None or leaf.frozen or ways[reader.weight] > 1:
            for atoms in (reader.inputs, reader.outputs):
                flow.atoms.pin(atoms, f"'{leaf.path}' is used in different ways")
        if other is not reader:
            flow.atoms.unite(reader.inputs, other.inputs)
            flow.atoms.unite(reader.outputs, other.outputs)
            other.known &= reader.known & (reader.const == other.const)
            other.carried |= reader.carried
    for reader in flow.readers:
        agreed = first[reader.weight, reader.out_axis]
        reader.known, reader.carried = agreed.known, agreed.carried


def _forget_unfoldable(flow: Flow) -> None:
    """Constants that no bias can take are not known, unless they are zero."""
    counts = Counter(reader.bias for reader in flow.readers)
    weights = Counter(bias for bias, _ in {(reader.bias, reader.weight) for reader in flow.readers})
    for reader in flow.readers:
        if reader.carried:
            continue
        if reader.bias is None:
            foldable = reader.new_bias is not None
        else:
            foldable = weights[reader.bias] == 1 and flow.leaves[reader.bias].uses == counts[reader.bias]
        if not foldable:
            reader.known = reader.known & (reader.const == 0)
