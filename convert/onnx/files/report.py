"""The content of an ONNX file, and what was measured when it was exported."""

from __future__ import annotations

import gzip
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from bensemble.errors import shown
from bensemble.tables import Printed, text_table

__all__ = ["ExportReport", "OnnxSummary", "TensorInfo", "gzip_size"]


#: The oldest ONNX Runtime that reads each operator set; 1.16 is the oldest that was tried.
ONNX_RUNTIMES = {19: "1.16", 20: "1.17", 21: "1.18", 22: "1.20", 23: "1.23"}


def gzip_size(data: bytes) -> int:
    """Bytes of the gzip file."""
    return len(gzip.compress(data, 6))


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
class OnnxSummary(Printed):
    """The content of an ONNX file.

    Attributes:
        path: The file.
        size: Bytes on disk, with the files of external weights.
        gzip_size: Bytes after gzip.
        inputs: Inputs of the graph.
        outputs: Outputs of the graph.
        parameters: Number of stored weights: the entries of all float, int8 and int4 tensors with at least one axis.
            The exporter folds BatchNorm into convolutions, so the model may have had more. Biases of quantised layers
            are int32 and not counted, nor are scales and zero points.
        zeros: How many of them are exactly 0.
        opset: Version of the operator set.
        operators: How often each operator occurs.
        metadata: Strings stored in the file; those of the toolkit start with ``bensemble.``.

    Example:
        >>> convert.inspect_onnx("plain.onnx").parameters
        4874
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
        return "\n".join([str(self.path), *text_table(self._rows(), indent="  ")])

    def _rows(self) -> list[tuple[str, str]]:
        """Label and text of each line."""
        nodes = sum(self.operators.values())
        rows = [
            ("size", f"{_bytes(self.size)}, {_bytes(self.gzip_size)} gzipped"),
            ("parameters", f"{self.parameters:,}, {self.sparsity:.1%} zeros"),
            ("graph", f"{nodes} {'operator' if nodes == 1 else 'operators'}, opset {self.opset}"),
        ]
        metadata = [f"{key} = {shown(value)}" for key, value in sorted(self.metadata.items())]
        for label, texts in (("inputs", self.inputs), ("outputs", self.outputs), ("metadata", metadata)):
            rows += [("" if row else label, str(text)) for row, text in enumerate(texts)]
        return rows


@dataclass(frozen=True)
class ExportReport(OnnxSummary):
    """The content of an exported file, and its errors and latency in ONNX Runtime.

    Attributes:
        max_error: Largest absolute difference from the model's outputs; None when the file was not verified.
        relative_error: The same over the largest absolute output; None when the file was not verified.
        tolerance: Largest relative error allowed, by the model's precision or by its own rounding error; None for a
            quantised file, whose error on the calibration data is measured and not bounded.
        latency_ms: CPU time of a run on one thread, median in milliseconds, by batch size (key 0: no batch axis); empty
            when the file was not verified.
        quantization: How the file was quantised, None where it was not.
        rms_error: Of a quantised file, root mean square of the difference over that of the model's outputs.
        agreement: Of a quantised file, share of the examples (rows of the last axis) with the same largest output.
        sparse_tensors: How many weights are stored by their nonzero entries.
        float_size: Of a quantised file, bytes of the file before.
        float_latency_ms: Of a quantised file, ``latency_ms`` of the file before.

    Example:
        >>> error = convert.export_onnx(model, "digits.onnx", x).relative_error
    """

    max_error: float | None = None
    relative_error: float | None = None
    tolerance: float | None = None
    latency_ms: Mapping[int, float] = field(default_factory=dict)
    quantization: str | None = None
    rms_error: float | None = None
    agreement: float | None = None
    sparse_tensors: int = 0
    float_size: int | None = None
    float_latency_ms: Mapping[int, float] = field(default_factory=dict)

    @property
    def runtimes(self) -> dict[str, str]:
        """Whether each runtime of ``make runtimes`` reads the file: from which version on, ``"yes"``, or why not."""
        newest = next((version for opset, version in ONNX_RUNTIMES.items() if self.opset <= opset), None)
        found = {"ONNX Runtime": "the newest" if newest is None else f"{newest} or newer, also node and web"}
        half = any(info.dtype == "float16" for info in (*self.inputs, *self.outputs))
        sparse = "no, it reads no sparse weights; export with sparse=False" if self.sparse_tensors else None
        found["OpenVINO"] = sparse or "yes"
        found["tract"] = sparse or ("no, it computes float16 products in float32; export in float32" if half else "yes")
        return found

    @property
    def verified(self) -> bool:
        """Whether the written file was run and reproduced the model."""
        return self.max_error is not None

    def _rows(self) -> list[tuple[str, str]]:
        rows = super()._rows()
        rows += [
            ("" if row else "runs in", f"{name}: {text}") for row, (name, text) in enumerate(self.runtimes.items())
        ]
        if self.sparse_tensors:
            rows.append(("sparse", f"{self.sparse_tensors} weights stored by their nonzero entries"))
        if self.quantization is not None:
            rows.append(("quantised", self.quantization))
            rows += [("", text) for text in self._worse_than_float()]
        if self.max_error is None:
            return [*rows, ("verified", "no")]
        error = f"{self.max_error:.1e}, {self.relative_error:.1e} of the largest output"
        if self.quantization is None:
            rows.append(("verified", f"max error {error} (allowed {self.tolerance:.0e})"))
        else:
            agrees = "" if self.agreement is None else f", same largest output for {self.agreement:.1%}"
            rows.append(("error", f"max {error}, rms {self.rms_error:.1e}{agrees}"))
        times = [
            _milliseconds(value) + (f" at batch {size}" if size else "") for size, value in self.latency_ms.items()
        ]
        return [*rows, ("latency", f"{', '.join(times)}, one thread")] if times else rows

    def _worse_than_float(self) -> list[str]:
        """What a quantised file does worse than the float file."""
        found = []
        if self.float_size is not None and self.size >= self.float_size:
            found.append(f"larger than the float file, which has {_bytes(self.float_size)}")
        for batch, before in self.float_latency_ms.items():
            if self.latency_ms.get(batch, 0.0) > before:
                at = f" at batch {batch}" if batch else ""
                found.append(f"slower than the float file{at}, which takes {_milliseconds(before)}")
        return found


def _milliseconds(value: float) -> str:
    """Three digits, and no power of ten for seconds: 8.47 ms, 1,104 ms."""
    return f"{value:,.0f} ms" if value >= 1000 else f"{value:.3g} ms"


def _bytes(count: int) -> str:
    """Bytes in decimal units: 1.56 MB."""
    for size, unit in ((1e9, "GB"), (1e6, "MB"), (1e3, "kB")):
        if count >= size:
            return f"{count / size:.3g} {unit}"
    return f"{count} bytes"
