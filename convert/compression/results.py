"""What a search for small files found: every file measured, and those that no other one beats."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from bensemble.errors import ConversionError
from bensemble.plots import labelled, on_axes
from bensemble.tables import Printed, text_table

from .confirming import Confirmation

__all__ = ["Compression", "Constraints", "Point", "UnmetConstraintsError"]


@dataclass(frozen=True)
class Point:
    """One file, measured in ONNX Runtime.

    Attributes:
        name: What was done, in words.
        threshold: Score up to which was pruned; None for the network at the posterior mean.
        granularity: ``"weight"`` or ``"channel"``; None where nothing was pruned.
        quantize: ``"int8"`` or None.
        metric: What ``evaluate`` gave for this file; higher is better.
        drop: By how much that is below the metric of the file at the posterior mean.
        sparsity: Share of the weights that pruning removed.
        parameters: Weights in the file, after compaction.
        size: Bytes of the file.
        gzip_size: Bytes after gzip.
        latency_ms: Milliseconds of one run on the example inputs, one thread, all files in turns; nan until timed.
        latency_ratio: The same over that of the file at the posterior mean, in the same rounds.
        score: ``"snr"`` or ``"magnitude"``; None where nothing was pruned.
    """

    name: str
    threshold: float | None
    granularity: str | None
    quantize: str | None
    metric: float
    drop: float
    sparsity: float
    parameters: int
    size: int
    gzip_size: int
    latency_ms: float = math.nan
    latency_ratio: float = math.nan
    score: str | None = None

    def beats(self, other: Point) -> bool:
        """Whether this file is nowhere worse than the other one, and better somewhere; latency counts once timed."""
        pairs = [(-self.metric, -other.metric), (self.size, other.size), (self.latency_ms, other.latency_ms)]
        known = [(mine, its) for mine, its in pairs if not math.isnan(mine + its)]
        return all(mine <= its for mine, its in known) and any(mine < its for mine, its in known)


@dataclass(frozen=True)
class Constraints:
    """What a file has to meet; None asks for nothing."""

    max_drop: float | None = None
    max_latency_ms: float | None = None
    max_size: int | None = None

    def misses(self, point: Point) -> list[str]:
        """The constraints that a file does not meet."""
        return [name for name, most in self._given().items() if _measured(name, point) > most]

    def nearest(self, points: Sequence[Point]) -> str:
        """For each constraint the file that comes closest to it, and what that file misses, in words."""
        found = []
        for name in self._given():
            best = min(points, key=lambda point: (_measured(name, point), len(self.misses(point))))
            found.append(
                f"the least for {name} is {_measured(name, best):.4g}, by '{best.name}', which misses "
                f"{' and '.join(self.misses(best))}"
            )
        return "; ".join(found)

    def _given(self) -> dict[str, float]:
        return {name: value for name, value in asdict(self).items() if value is not None}

    def __str__(self) -> str:
        return ", ".join(f"{name}={value}" for name, value in self._given().items())


def _measured(constraint: str, point: Point) -> float:
    """What a constraint speaks about."""
    return float({"max_drop": point.drop, "max_latency_ms": point.latency_ms, "max_size": point.size}[constraint])


@dataclass(frozen=True)
class Compression(Printed):
    """The result of :func:`convert.compress`; ``print`` shows the front as a table.

    Attributes:
        path: The chosen file.
        chosen: Its measurements.
        baseline: The file of the network at the posterior mean, nothing pruned.
        points: Every file that was measured, the baseline first.
        constraints: What was asked for.
        notes: Candidates that could not be written, and why.
        confirmed: The chosen file on data that the search did not see; None without ``confirm``.

    Example:
        >>> front = convert.compress(bnn, accuracy, x, "small.onnx", max_drop=0.01, scores="snr").front
    """

    path: Path
    chosen: Point
    baseline: Point
    points: tuple[Point, ...]
    constraints: Constraints
    notes: tuple[str, ...] = ()
    confirmed: Confirmation | None = None

    @property
    def front(self) -> tuple[Point, ...]:
        """The Pareto front over metric, size and latency: the files that no other one beats, the largest first."""
        found = [point for point in self.points if not any(other.beats(point) for other in self.points)]
        return tuple(sorted(found, key=lambda point: (-point.size, -point.latency_ms)))

    def rows(self) -> list[dict[str, Any]]:
        """Plain dicts, for JSON or a table library."""
        return [asdict(point) for point in self.points]

    def __str__(self) -> str:
        header = ["", "file", "metric", "drop", "removed", "weights", "kB", "gzip kB", "ms", "ratio"]
        shown = list(self.front) if self.baseline in self.front else [self.baseline, *self.front]
        if self.chosen not in shown:
            shown.append(self.chosen)
        lines = [header, *(_cells(point, "*" if point is self.chosen else "") for point in shown)]
        table = text_table(lines, right=range(2, len(header)))
        head = f"{self.path}: {self.chosen.name}, {self.constraints}; {len(self.points)} files measured, the front:"
        notes = [*self.notes, *([] if self.confirmed is None else [str(self.confirmed)])]
        return "\n".join([head, *table, *(f"  {note}" for note in notes)])

    def plot(self, axes: Any = None) -> Any:
        """Draw metric against size, the front of these two as a line, the chosen file marked; needs matplotlib.

        Args:
            axes: Where to draw; new axes by default.

        Returns:
            The matplotlib axes.
        """
        axes = on_axes(axes)
        from matplotlib.ticker import LogLocator, NullFormatter

        kinds = {point.quantize for point in self.points}
        for quantize, marker in ((None, "o"), ("int8", "s")):
            some = [point for point in self.points if point.quantize == quantize]
            label = (quantize or "float32") if len(kinds) > 1 else None
            axes.scatter([p.size / 1e3 for p in some], [p.metric for p in some], s=24, marker=marker, label=label)
        best = list[Point]()
        for point in sorted(self.points, key=lambda point: (point.size, -point.metric)):
            best += [point] if not best or point.metric > best[-1].metric else []
        sizes, metrics = [point.size / 1e3 for point in best], [point.metric for point in best]
        axes.plot(sizes, metrics, linewidth=1, color="0.5", zorder=0, drawstyle="steps-post")
        axes.scatter(self.chosen.size / 1e3, self.chosen.metric, s=140, facecolors="none", edgecolors="black")
        place = (self.chosen.size / 1e3, self.chosen.metric)
        line = {"arrowstyle": "-", "linewidth": 0.5}
        axes.annotate(self.chosen.name, place, (0.97, 0.05), textcoords="axes fraction", ha="right", arrowprops=line)
        axes.set_xscale("log")
        axes.xaxis.set_major_locator(LogLocator(subs=(1, 2, 5)))
        axes.xaxis.set_major_formatter("{x:g}")
        axes.xaxis.set_minor_formatter(NullFormatter())
        return labelled(axes, "size of the file, kB", "metric")


class UnmetConstraintsError(ConversionError):
    """No file meets the constraints; nothing was written.

    Attributes:
        points: Every file that was measured, so that a long search is not lost.
    """

    def __init__(self, constraints: Constraints, points: Sequence[Point], refused: Sequence[str] = ()) -> None:
        self.points = tuple(points)
        found = f"on the data of confirm {'; '.join(refused[:3])}" if refused else constraints.nearest(points)
        super().__init__(
            f"compress: no file meets {constraints}, got {len(points)} files: {found}. "
            "Relax a constraint, train the posterior for longer, or use the recipe for pruning."
        )


def _cells(point: Point, mark: str) -> list[str]:
    return [
        mark,
        point.name,
        f"{point.metric:.4g}",
        f"{point.drop:.4g}",
        f"{point.sparsity:.1%}",
        f"{point.parameters:,}",
        f"{point.size / 1e3:,.1f}",
        f"{point.gzip_size / 1e3:,.1f}",
        f"{point.latency_ms:.3g}",
        f"{point.latency_ratio:.2f}",
    ]
