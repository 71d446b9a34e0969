"""What an ONNX file holds, and what running it showed."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

__all__ = ["ExportReport", "OnnxSummary", "TensorInfo"]


@dataclass(frozen=True)
class TensorInfo:
    """An input or output of a file.

    Attributes:
        name: Its name.
        dtype: Its element type, as numpy calls it.
        shape: Sizes; a string names an axis that varies, and may be an expression such as ``"2*batch"``.
    """

    name: str
    dtype: str
    shape: tuple[int | str, ...]

    def __str__(self) -> str:
        return f"{self.name}: {self.dtype}[{', '.join(str(size) for size in self.shape)}]"


@dataclass(frozen=True)
class OnnxSummary:
    """What an ONNX file holds.

    Attributes:
        path: The file.
        size: Bytes on disk, with the files of external weights.
        gzip_size: Bytes after gzip.
        inputs: What the graph takes.
        outputs: What the graph gives.
        parameters: Number of stored weights: the entries of all float, int8 and int4 tensors with at least one axis.
            The exporter folds BatchNorm into convolutions, so the model may have had more. Biases of quantised layers
            are int32 and not counted, nor are scales and zero points.
        zeros: How many of them are exactly 0.
        opset: Version of the operator set.
        operators: How often each operator occurs.
        metadata: Strings stored in the file; those of the toolkit start with ``bensemble.``.
    """

    path: Path
    size: int
    gzip_size: int
    inputs: tuple[TensorInfo, ...]
    outputs: tuple[TensorInfo, ...]
    parameters: int
    zeros: int
    opset: int
    operators: Mapping[str, int] = field(repr=False)
    metadata: Mapping[str, str] = field(repr=False)

    @property
    def sparsity(self) -> float:
        """Share of the weights that are exactly 0."""
        return self.zeros / self.parameters if self.parameters else 0.0

    def __str__(self) -> str:
        return "\n".join(self._lines())

    def _lines(self) -> list[str]:
        nodes = sum(self.operators.values())
        lines = [
            f"{self.path}",
            f"  size        {_bytes(self.size)}, {_bytes(self.gzip_size)} gzipped",
            f"  parameters  {self.parameters:,}, {self.sparsity:.1%} zeros",
            f"  graph       {nodes} {'operator' if nodes == 1 else 'operators'}, opset {self.opset}",
        ]
        lines += [
            f"  {label if not row else '':<10}  {row_text}"
            for label, rows in (
                ("inputs", self.inputs),
                ("outputs", self.outputs),
                ("metadata", sorted(self.metadata.items())),
            )
            for row, row_text in enumerate(_row(entry) for entry in rows)
        ]
        return lines


@dataclass(frozen=True)
class ExportReport(OnnxSummary):
    """What an ONNX file holds, and what running it in ONNX Runtime showed.

    Attributes:
        max_error: Largest absolute difference from the model's outputs; None when the file was not verified.
        relative_error: The same over the largest absolute output; None when the file was not verified.
        tolerance: What the relative error may be at most, by the model's precision or by its own rounding; None for a
            quantised file, whose error over the calibration data is measured and not bounded.
        latency_ms: Median milliseconds of a run on one thread, by batch size (key 0: no batch axis); empty when the
            file was not verified.
        quantization: How the weights were rounded, None where they were not.
        rms_error: Of a quantised file, root mean square of the difference over that of the model's outputs.
        agreement: Of a quantised file, share of the examples (rows of the last axis) with the same largest output.
        sparse_tensors: How many weights are stored by their nonzero entries.
    """

    max_error: float | None = None
    relative_error: float | None = None
    tolerance: float | None = None
    latency_ms: Mapping[int, float] = field(default_factory=dict)
    quantization: str | None = None
    rms_error: float | None = None
    agreement: float | None = None
    sparse_tensors: int = 0

    @property
    def verified(self) -> bool:
        """Whether the written file was run and reproduced the model."""
        return self.max_error is not None

    def _lines(self) -> list[str]:
        lines = super()._lines()
        if self.sparse_tensors:
            lines.append(f"  sparse      {self.sparse_tensors} weights stored by their nonzero entries")
        if self.quantization is not None:
            lines.append(f"  quantised   {self.quantization}")
        if self.max_error is None:
            return [*lines, "  verified    no"]
        if self.quantization is not None:
            agrees = "" if self.agreement is None else f", same largest output for {self.agreement:.1%}"
            lines.append(
                f"  error       max {self.max_error:.1e}, {self.relative_error:.1e} of the largest output, "
                f"rms {self.rms_error:.1e}{agrees}"
            )
        else:
            lines.append(self._bounded())
        times = [f"{value:.3g} ms" + (f" at batch {size}" if size else "") for size, value in self.latency_ms.items()]
        return [*lines, f"  latency     {', '.join(times)}, one thread"] if times else lines

    def _bounded(self) -> str:
        return (
            f"  verified    max error {self.max_error:.1e}, {self.relative_error:.1e} of the largest output "
            f"(allowed {self.tolerance:.0e})"
        )


def _row(entry: TensorInfo | tuple[str, str]) -> str:
    if isinstance(entry, TensorInfo):
        return str(entry)
    key, value = entry
    shown = value if len(value) <= 80 else value[:77] + "..."
    return f"{key} = {shown}"


def _bytes(count: int) -> str:
    """Bytes in decimal units: 1.56 MB."""
    size = float(count)
    for unit in ("bytes", "kB", "MB"):
        if size < 1000:
            return f"{size:.3g} {unit}" if unit != "bytes" else f"{count} bytes"
        size /= 1000
    return f"{size:.3g} GB"
