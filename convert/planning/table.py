"""How a plan prints: repeated blocks folded to one line each, at most forty lines."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Hashable, Iterable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .conversion import ConversionPlan, PlanRow

__all__ = ["render_html", "render_text"]

MOST_LINES = 40
_HEADER = ("parameters", "type", "count", "weights", "becomes", "why / remark")


def render_text(plan: ConversionPlan) -> str:
    """The plan as a table of at most forty lines, the summary first."""
    lines = [_HEADER, *_folded(plan.rows)]
    widths = [max(len(line[i]) for line in lines) for i in range(len(_HEADER))]
    right = (2, 3)
    table = (
        "  ".join(c.rjust(w) if i in right else c.ljust(w) for i, (c, w) in enumerate(zip(line, widths, strict=True)))
        for line in lines
    )
    return "\n".join([plan.summary, _source(plan.source), *(line.rstrip() for line in table)])


def render_html(plan: ConversionPlan) -> str:
    """The same table for a notebook."""
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in _HEADER)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in line) + "</tr>" for line in _folded(plan.rows)
    )
    return (
        f"<p><b>{html.escape(plan.summary)}</b><br>{html.escape(_source(plan.source))}</p>"
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    )


def _source(source: str) -> str:
    return {
        "probe": "Call sites come from a forward on the example inputs.",
        "fx": "Call sites come from a torch.fx trace.",
        "unknown": "torch.fx cannot trace this model, so call sites are unknown; pass example_inputs to learn them.",
    }[source]


def _folded(rows: Iterable[PlanRow]) -> list[tuple[str, ...]]:
    """Rows grouped as finely as forty lines allow."""
    rows = list(rows)
    groupings: tuple[Callable[[PlanRow], tuple[str, Hashable]], ...] = (
        lambda row: (row.name, row.name),
        lambda row: (pattern := _numbers_folded(row.name), pattern),
        lambda row: (pattern := _numbers_folded(row.name).rpartition(".")[0] or row.name, pattern),
        lambda row: (f"... .{row.name.rpartition('.')[2]}", row.name.rpartition(".")[2]),
        lambda row: ("...", ""),
    )
    lines: list[tuple[str, ...]] = []
    for grouping in groupings:
        groups: dict[tuple[Hashable, ...], list[PlanRow]] = {}
        labels: dict[tuple[Hashable, ...], str] = {}
        for row in rows:
            label, key = grouping(row)
            full_key = (key, row.type, row.tier, _numbers_folded(row.reason))
            groups.setdefault(full_key, []).append(row)
            labels[full_key] = label
        lines = [_line(labels[key], members) for key, members in groups.items()]
        if len(lines) <= MOST_LINES - 3:
            return lines
    rest = len(lines) - (MOST_LINES - 4)
    return [*lines[: MOST_LINES - 4], (f"... and {rest} more groups", "", "", "", "", "")]


def _line(label: str, rows: list[PlanRow]) -> tuple[str, ...]:
    first = rows[0]
    weights = sum(row.numel for row in rows)
    if len(rows) == 1:
        return (first.name, first.type, "1", f"{weights:,}", first.tier, first.reason)
    return (label, first.type, str(len(rows)), f"{weights:,}", first.tier, _numbers_folded(first.reason))


def _numbers_folded(name: str) -> str:
    """``layer1.0.conv2.weight`` as ``layer*.*.conv*.weight``."""
    return re.sub(r"\d+", "*", name)
