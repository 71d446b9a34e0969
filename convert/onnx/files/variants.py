"""Files of one network side by side, measured in one run without torch: bytes, zeros, milliseconds and a metric."""

from __future__ import annotations

import math
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from bensemble.errors import InvalidTypeError, InvalidValueError
from bensemble.tables import Printed, text_table

from .inspection import inspect_onnx
from .sessions import BATCH_SIZES, OnnxFile, Timing, latencies

if TYPE_CHECKING:
    from .measuring import Deviation

__all__ = ["Comparison", "Variant", "checked_metric", "side_by_side"]


@dataclass(frozen=True)
class Variant:
    """One file.

    Attributes:
        name: Its key in ``files``.
        path: The file.
        size: Bytes.
        gzip_size: Bytes after gzip.
        parameters: Stored weights.
        sparsity: Share of them that is 0.
        latency: By batch size, on one thread; the ratio is to the first file.
        error: Against the torch model; None without one.
        metric: The result of ``evaluate``; None without it.
    """

    name: str
    path: Path
    size: int
    gzip_size: int
    parameters: int
    sparsity: float
    latency: Mapping[int, Timing] = field(default_factory=dict)
    error: Deviation | None = None
    metric: float | None = None


@dataclass(frozen=True)
class Comparison(Printed):
    """Files side by side; ``print`` shows a table.

    Attributes:
        variants: The files, in the order given; the first is the reference of all ratios.
        model_metric: The result of ``evaluate`` for the torch model, None without one.

    Example:
        >>> size = convert.compare_onnx({"dense": "plain.onnx"}, x)["dense"].size
    """

    variants: tuple[Variant, ...]
    model_metric: float | None = None

    def __getitem__(self, name: str) -> Variant:
        """A variant by name."""
        return next(variant for variant in self.variants if variant.name == name)

    def rows(self) -> list[dict[str, Any]]:
        """Plain dicts, for JSON or a table library."""
        return [{**asdict(variant), "path": str(variant.path)} for variant in self.variants]

    def __str__(self) -> str:
        first = self.variants[0]
        sizes = list(first.latency)
        header = ["file", "kB", "gzip kB", "weights", "zeros"]
        header += [f"ms at {size}" if size else "ms" for size in sizes]
        header += ["max error", "agrees"] * (first.error is not None) + ["metric"] * (first.metric is not None)
        lines = [header, *(_cells(variant, first, sizes) for variant in self.variants)]
        if self.model_metric is not None:
            lines.append(["(torch model)", *[""] * (len(header) - 2), f"{self.model_metric:.4g}"])
        return "\n".join(text_table(lines, right=range(1, len(header))))


def _cells(variant: Variant, first: Variant, sizes: Sequence[int]) -> list[str]:
    cells = [variant.name, f"{variant.size / 1e3:,.1f}", f"{variant.gzip_size / 1e3:,.1f}", f"{variant.parameters:,}"]
    cells.append(f"{variant.sparsity:.1%}")
    for size in sizes:
        timing = variant.latency.get(size)
        ratio = "" if variant is first or timing is None else f" ({timing.ratio:.2f}x)"
        cells.append(f"{timing.ms:.3g}{ratio}" if timing else "-")
    if variant.error is not None:
        agrees = variant.error.agreement
        cells += [f"{variant.error.relative_error:.1e}", "-" if agrees is None else f"{agrees:.1%}"]
    return cells + ([f"{variant.metric:.4g}"] if variant.metric is not None else [])


def side_by_side(
    files: Mapping[str, str | os.PathLike[str]],
    arrays: Mapping[str, np.ndarray],
    *,
    evaluate: Callable[[OnnxFile], float] | None = None,
    batch_sizes: Sequence[int] = BATCH_SIZES,
    rounds: int = 7,
    what: str = "",
) -> Comparison:
    """What :func:`convert.compare_onnx` measures of files by themselves, on arrays by name or in order."""
    summaries = {name: inspect_onnx(path) for name, path in files.items()}
    opened = {name: OnnxFile(path) for name, path in files.items()}
    times = latencies(opened, arrays, batch_sizes, rounds, what) if rounds else {name: {} for name in files}
    return Comparison(
        tuple(
            Variant(
                name=name,
                path=summary.path,
                size=summary.size,
                gzip_size=summary.gzip_size,
                parameters=summary.parameters,
                sparsity=summary.sparsity,
                latency=times[name],
                metric=None if evaluate is None else checked_metric("compare_onnx", evaluate(opened[name]), name),
            )
            for name, summary in summaries.items()
        )
    )


def checked_metric(verb: str, value: Any, name: str) -> float:
    """The number that ``evaluate`` returned for a file.

    Raises:
        InvalidTypeError: It is not a number.
        InvalidValueError: It is NaN or infinite.
    """
    try:
        metric = float(value)
    except (TypeError, ValueError) as err:
        raise InvalidTypeError(f"{verb}: evaluate must return a number, got {value!r} for '{name}'.") from err
    if not math.isfinite(metric):
        got = "NaN" if metric != metric else metric
        raise InvalidValueError(f"{verb}: evaluate must return a number, got {got} for '{name}'; look at its data.")
    return metric
