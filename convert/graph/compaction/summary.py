"""What a compaction removed, and what it had to leave."""

from __future__ import annotations

from dataclasses import dataclass

import torch

from bensemble.tables import Printed, text_table

from .atoms.flow import Flow
from .solution import Solution

__all__ = ["CompactionReport", "LayerChange", "describe_layers"]


@dataclass(frozen=True)
class LayerChange:
    """One weight that is linear in its input.

    Attributes:
        name: Path of the weight.
        inputs: Channels read before and after.
        outputs: Channels made before and after.
        pinned: Why its outputs stay although some of them are constant or unread, None where nothing stops them.
    """

    name: str
    inputs: tuple[int, int]
    outputs: tuple[int, int]
    pinned: str | None


@dataclass(frozen=True)
class CompactionReport(Printed):
    """The result of a compaction; ``print`` shows a table.

    Attributes:
        parameters: Number of parameters before and after.
        form: "class" (the model's own class), "graph" (a GraphModule) or "unchanged".
        source: The tracer whose graph showed what could go, None where none could.
        layers: Every weight of the graph, in order.
        notes: Why the form is not "class", and operations that were not followed.

    Example:
        >>> before, after = convert.compaction_report(pruned, x).parameters
    """

    parameters: tuple[int, int]
    form: str
    source: str | None = None
    layers: tuple[LayerChange, ...] = ()
    notes: tuple[str, ...] = ()

    @property
    def kept(self) -> float:
        """Share of the parameters that is left."""
        before, after = self.parameters
        return after / before if before else 1.0

    def __str__(self) -> str:
        before, after = self.parameters
        lines = [f"{before:,} -> {after:,} parameters ({self.kept:.1%} left), form: {self.form}"]
        shown = [
            layer for layer in self.layers if layer.inputs[0] != layer.inputs[1] or layer.outputs[0] != layer.outputs[1]
        ]
        cells = [
            (layer.name, "inputs {} -> {}".format(*layer.inputs), "outputs {} -> {}".format(*layer.outputs))
            for layer in shown
        ]
        lines += text_table(cells, indent="  ")
        reasons: dict[str, list[str]] = {}
        for layer in self.layers:
            if layer.pinned:
                reasons.setdefault(layer.pinned, []).append(layer.name)
        for reason, names in reasons.items():
            more = f" and {len(names) - 3} more" if len(names) > 3 else ""
            lines.append(f"  stays: {', '.join(names[:3])}{more}: {reason}")
        return "\n".join([*lines, *(f"  note: {note}" for note in self.notes)])


def describe_layers(flow: Flow, solution: Solution) -> tuple[LayerChange, ...]:
    """The readers of a graph as rows, each weight once."""
    reasons: dict[int, str] = {}  # why sets of atoms stay, by representative
    for atoms, reason in (*flow.atoms.pins, *flow.atoms.ties):
        for root in torch.unique(solution.roots[atoms]).tolist():
            reasons.setdefault(root, reason)
    rows: dict[str, LayerChange] = {}
    for reader in flow.readers:
        inputs, outputs = solution.stays(reader.inputs), solution.stays(reader.outputs)
        roots = set(solution.roots[reader.outputs].tolist())
        pinned = next((reason for root, reason in reasons.items() if root in roots), None)
        rows.setdefault(
            reader.weight,
            LayerChange(
                reader.weight,
                (len(inputs), int(inputs.sum())),
                (len(outputs), int(outputs.sum())),
                pinned if outputs.all() and not reader.reads.any(2).all() else None,
            ),
        )
    return tuple(rows.values())
