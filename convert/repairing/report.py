"""What a repair did, as a table."""

from __future__ import annotations

from dataclasses import dataclass

from bensemble.tables import Printed, text_table

__all__ = ["RepairReport", "RepairRow"]


@dataclass(frozen=True)
class RepairRow:
    """One weight.

    Attributes:
        name: Its name in the network.
        removed: Share of its entries that are zero.
        before: Squared error of the layer's outputs, and of what is added to them, over the square of the dense
            network's outputs, on the inputs that chose the damping; nan where it was not measured.
        after: The same with the new weights.
        damping: What was chosen; 0 where the weight was left.
        seconds: Wall time.
        note: Why the weight was left as it was; empty where it changed.

    Example:
        >>> errors = {row.name: row.after for row in convert.repair_report(pruned, model, loader).rows}
    """

    name: str
    removed: float
    before: float = float("nan")
    after: float = float("nan")
    damping: float = 0.0
    seconds: float = 0.0
    note: str = ""


@dataclass(frozen=True)
class RepairReport(Printed):
    """Every weight of a repaired network in the order in which they were solved, then those that were left.

    Example:
        >>> rows = convert.repair_report(pruned, model, loader).rows
    """

    rows: tuple[RepairRow, ...]

    def __str__(self) -> str:
        changed = sum(not row.note for row in self.rows)
        seconds = sum(row.seconds for row in self.rows)
        table = [("weight", "removed", "error before", "after", "damping", "seconds", "")]
        table += [(row.name, f"{row.removed:.1%}", *_figures(row), f"{row.seconds:.2f}", row.note) for row in self.rows]
        head = f"{changed} of {len(self.rows)} weights repaired in {seconds:.1f} s"
        return "\n".join([head, *text_table(table, right=range(1, 6), indent="  ")])


def _figures(row: RepairRow) -> tuple[str, str, str]:
    if row.before != row.before:
        return "", "", ""
    return f"{row.before:.2e}", f"{row.after:.2e}", "" if row.note else f"{row.damping:g}"
