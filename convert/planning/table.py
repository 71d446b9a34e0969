"""How a plan prints: repeated blocks folded to one line each, at most forty lines."""

from __future__ import annotations

import html
import re
from collections.abc import Callable, Hashable, Sequence
from typing import Protocol

from bensemble.tables import text_table

__all__ = ["render_html", "render_text"]

MOST_LINES = 40
_HEADER = ("parameters", "type", "count", "weights", "becomes", "why / remark")


class Row(Protocol):
    """What a line of the table is made from; see :class:`convert.planning.rows.PlanRow`."""

    @property
    def name(self) -> str: ...
    @property
    def type(self) -> str: ...
    @property
    def tier(self) -> str: ...
    @property
    def reason(self) -> str: ...
    @property
    def numel(self) -> int: ...


def render_text(summary: str, source: str, rows: Sequence[Row]) -> str:
    """The plan as a table of at most forty lines, the summary first."""
    return "\n".join([summary, _source(source), *text_table([_HEADER, *_folded(rows)], right=(2, 3))])


def render_html(summary: str, source: str, rows: Sequence[Row]) -> str:
    """The same table for a notebook."""
    head = "".join(f"<th>{html.escape(cell)}</th>" for cell in _HEADER)
    body = "".join(
        "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in line) + "</tr>" for line in _folded(rows)
    )
    return (
        f"<p><b>{html.escape(summary)}</b><br>{html.escape(_source(source))}</p>"
        f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
    )


def _source(source: str) -> str:
    return {
        "probe": "Call sites come from a forward on the example inputs.",
        "fx": "Call sites come from a torch.fx trace.",
        "unknown": "torch.fx cannot trace this model, so call sites are unknown; pass example_inputs to learn them.",
    }[source]


def _folded(rows: Sequence[Row]) -> list[tuple[str, ...]]:
    """Rows grouped as finely as forty lines allow."""
    groupings: tuple[Callable[[Row], tuple[str, Hashable]], ...] = (
        lambda row: (row.name, row.name),
        lambda row: (pattern := _numbers_folded(row.name), pattern),
        lambda row: (pattern := _numbers_folded(row.name).rpartition(".")[0] or row.name, pattern),
        lambda row: (f"... .{row.name.rpartition('.')[2]}", row.name.rpartition(".")[2]),
        lambda row: ("...", ""),
    )
    lines: list[tuple[str, ...]] = []
    for grouping in groupings:
        groups: dict[tuple[Hashable, ...], list[Row]] = {}
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


def _line(label: str, rows: list[Row]) -> tuple[str, ...]:
    first = rows[0]
    weights = sum(row.numel for row in rows)
    if len(rows) == 1:
        return (first.name, first.type, "1", f"{weights:,}", first.tier, first.reason)
    return (label, first.type, str(len(rows)), f"{weights:,}", first.tier, _numbers_folded(first.reason))


def _numbers_folded(name: str) -> str:
    """``layer1.0.conv2.weight`` as ``layer*.*.conv*.weight``."""
    return re.sub(r"\d+", "*", name)
