"""What `export` and `inspect` print: a table for people, JSON for programs."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from typing import TYPE_CHECKING

from rich.console import Console
from rich.filesize import decimal
from rich.table import Table
from rich.text import Text

if TYPE_CHECKING:
    from ..onnx import ExportReport, OnnxSummary

__all__ = ["report_json", "show_report"]

#: Columns of a table that is not on a terminal, where nobody says how wide it may be.
PIPED_WIDTH = 120


def show_report(summary: OnnxSummary) -> None:
    """Print a summary or an export report as a table on stdout."""
    console = Console(highlight=False)
    if not console.is_terminal:
        console.width = PIPED_WIDTH
    table = Table.grid(padding=(0, 2))
    table.add_column(style="cyan", no_wrap=True)
    table.add_column(overflow="fold")
    for label, value in _rows(summary):
        table.add_row(label, Text(value))
    console.print(Text(str(summary.path), "bold"))
    console.print(table)


def report_json(summary: OnnxSummary) -> str:
    """A summary or an export report as JSON: its fields, and the share of zeros."""
    return json.dumps({**asdict(summary), "sparsity": summary.sparsity}, indent=2, default=str)


def _rows(summary: OnnxSummary) -> Iterable[tuple[str, str]]:
    from ..onnx.files.report import ExportReport as Report

    yield "size", f"{decimal(summary.size)}, {decimal(summary.gzip_size)} gzipped"
    yield "weights", f"{summary.parameters:,}, of which {summary.sparsity:.1%} are zero"
    if isinstance(summary, Report):
        yield from _measured(summary)
    for label, entries in (
        ("inputs", summary.inputs),
        ("outputs", summary.outputs),
        ("metadata", [f"{key} = {_shortened(value)}" for key, value in sorted(summary.metadata.items())]),
        ("operators", [", ".join(f"{count} {name}" for name, count in sorted(summary.operators.items()))]),
        ("opset", [str(summary.opset)]),
    ):
        for row, entry in enumerate(entries):
            yield "" if row else label, str(entry)


def _shortened(text: str, most: int = 200) -> str:
    """A string of the file in a few lines; --json has all of it."""
    return text if len(text) <= most else f"{text[: most - 3]}..."


def _measured(report: ExportReport) -> Iterable[tuple[str, str]]:
    """What running the file showed."""
    if report.max_error is None:
        yield "verified", "no"
        return
    difference = f"largest difference {report.max_error:.1e}, {report.relative_error:.1e} of the largest output"
    if report.quantization is not None:
        yield "quantised", report.quantization
        yield "error", f"against the model on the calibration data: {difference}, rms {report.rms_error:.1e}"
    else:
        yield "verified", f"against the model in ONNX Runtime: {difference}, allowed {report.tolerance:.0e}"
    for row, (size, milliseconds) in enumerate(report.latency_ms.items()):
        yield (
            "" if row else "latency",
            f"{milliseconds:.3g} ms" + (f" at batch {size}" if size else "") + ", one thread",
        )
