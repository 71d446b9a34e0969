"""The plan as data: one row for each Parameter. It prints as a table of at most forty lines, repeated blocks folded."""

from __future__ import annotations

import html
import json
import math
import re
from collections.abc import Callable, Hashable, Sequence
from dataclasses import asdict, dataclass

from bensemble.tables import text_table

__all__ = ["ConversionPlan", "PlanRow"]

MOST_LINES = 40
_HEADER = ("parameters", "type", "count", "weights", "becomes", "why / remark")
#: Columns of numbers, aligned to the right.
_NUMBERS = (2, 3)
_SOURCES = {
    "probe": "Call sites come from a forward on the example inputs.",
    "fx": "Call sites come from a torch.fx trace.",
    "unknown": "torch.fx cannot trace this model, so call sites are unknown; pass example_inputs to learn them.",
}


@dataclass(frozen=True)
class PlanRow:
    """What happens to one Parameter.

    Attributes:
        name: Its first name in the model.
        aliases: Its other names, where it is shared or its module has several.
        type: Type of the module that owns it.
        shape: Its shape.
        tier: "local" (a Bayesian twin of the layer: local reparameterization), "sampled" (a posterior with sampled
            weights), "deterministic", or "posterior" (a mean or rho of a layer that is Bayesian already).
        calls: How often a forward calls the owning module, None when that is unknown.
        operations: Operations that the weight reaches without a call of its module.
        prunable: Whether a zero mean is a zero in the weight that reaches the operation.
        reason: Why it stays deterministic, or what else there is to know.
        lookups: Those of its names, at tables, that keep reading the mean: ``include`` selects other uses alone, such
            as a head that is tied to the embedding.

    Example:
        >>> tiers = {row.name: row.tier for row in convert.plan(model).rows}
    """

    name: str
    aliases: tuple[str, ...]
    type: str
    shape: tuple[int, ...]
    tier: str
    calls: int | None
    operations: tuple[str, ...]
    prunable: bool
    reason: str
    lookups: tuple[str, ...] = ()

    @property
    def numel(self) -> int:
        """Number of weights."""
        return math.prod(self.shape)

    @property
    def is_bayesian(self) -> bool:
        """Whether the Parameter gets a posterior."""
        return self.tier in ("local", "sampled")


@dataclass(frozen=True)
class ConversionPlan:
    """All rows, and where the knowledge came from. Prints as a table that folds repeated blocks.

    Attributes:
        rows: One for each distinct Parameter, in the model's order.
        model: Type of the model.
        source: "probe" (example inputs), "fx" (a torch.fx trace) or "unknown" (neither was possible).
        last_layer: The only layer that will be Bayesian, where example inputs prove that its output is the model's
            (see :func:`convert.last_layer`); else None.

    Example:
        >>> convert.plan(model).summary
        'Sequential: 4,874 of 4,874 parameters (100.0 %) become Bayesian, in 6 posteriors.'
    """

    rows: tuple[PlanRow, ...]
    model: str
    source: str
    last_layer: str | None = None

    @property
    def summary(self) -> str:
        """One line: how many weights become Bayesian, and how many posteriors that makes."""
        bayesian = sum(row.numel for row in self.rows if row.is_bayesian)
        total = sum(row.numel for row in self.rows)
        posteriors = sum(row.is_bayesian for row in self.rows)
        share = 100 * bayesian / total if total else 0.0
        return (
            f"{self.model}: {bayesian:,} of {total:,} parameters ({share:.1f} %) become Bayesian, "
            f"in {posteriors} posteriors."
        )

    def __str__(self) -> str:
        table = text_table([_HEADER, *_folded(self.rows)], right=_NUMBERS)
        return "\n".join([self.summary, _SOURCES[self.source], *table])

    def _repr_html_(self) -> str:
        """The same table for a notebook."""
        head = "".join(f"<th>{html.escape(cell)}</th>" for cell in _HEADER)
        body = "".join(
            "<tr>" + "".join(f"<td>{html.escape(cell)}</td>" for cell in line) + "</tr>" for line in _folded(self.rows)
        )
        return (
            f"<p><b>{html.escape(self.summary)}</b><br>{html.escape(_SOURCES[self.source])}</p>"
            f"<table><thead><tr>{head}</tr></thead><tbody>{body}</tbody></table>"
        )

    def to_json(self, indent: int | None = 2) -> str:
        """The plan as JSON, with every row."""
        return json.dumps(
            {
                "model": self.model,
                "source": self.source,
                "last_layer": self.last_layer,
                "summary": self.summary,
                "rows": [asdict(row) for row in self.rows],
            },
            indent=indent,
        )


def _folded(rows: Sequence[PlanRow]) -> list[tuple[str, ...]]:
    """Rows grouped as finely as forty lines allow."""
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
