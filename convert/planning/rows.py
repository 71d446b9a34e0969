"""The plan as data: one row for each Parameter, and how the whole of it prints."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass

from .table import render_html, render_text

__all__ = ["ConversionPlan", "PlanRow"]


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

    @property
    def numel(self) -> int:
        """Number of weights."""
        count = 1
        for size in self.shape:
            count *= size
        return count

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
    """

    rows: tuple[PlanRow, ...]
    model: str
    source: str

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
        return render_text(self.summary, self.source, self.rows)

    def _repr_html_(self) -> str:
        return render_html(self.summary, self.source, self.rows)

    def to_json(self, indent: int | None = 2) -> str:
        """The plan as JSON, with every row."""
        return json.dumps(
            {
                "model": self.model,
                "source": self.source,
                "summary": self.summary,
                "rows": [asdict(row) for row in self.rows],
            },
            indent=indent,
        )
