"""ONNX files: written, verified in ONNX Runtime, measured and read back.

``export`` holds ``export_onnx`` and the order of its stages, a module or folder each: ``options``, ``deployable`` (a
plain copy of the model), ``inputs`` (arguments, dynamic axes, runs of the model), ``tracing`` (torch's exporter),
``finishing`` (names, metadata), ``verification``, ``shrinking`` (int8, sparse). ``uncertainty`` adds what a file with
``outputs="uncertainty"`` needs: weight draws, statistics, passes over the graph. ``files`` reads, runs and compares any
ONNX file and does not know how it was made.

Names load on first use, so that files can be inspected where torch is not installed.
"""

from __future__ import annotations

from importlib import import_module
from typing import TYPE_CHECKING, Any

from bensemble.errors import needs_extra

with needs_extra("convert.onnx", "onnx"):
    import numpy as _numpy  # noqa: F401
    import onnx as _onnx  # noqa: F401
    import onnxscript as _onnxscript  # noqa: F401  # torch.onnx needs it

if TYPE_CHECKING:
    from .export import export_onnx
    from .files.comparison import compare_onnx
    from .files.inspection import inspect_onnx
    from .files.report import ExportReport, OnnxSummary, TensorInfo
    from .files.running import OnnxModel
    from .files.variants import Comparison, Variant

_HOMES = {
    "Comparison": "files.variants",
    "ExportReport": "files.report",
    "OnnxModel": "files.running",
    "OnnxSummary": "files.report",
    "TensorInfo": "files.report",
    "Variant": "files.variants",
    "compare_onnx": "files.comparison",
    "export_onnx": "export",
    "inspect_onnx": "files.inspection",
}

__all__ = [
    "Comparison",
    "ExportReport",
    "OnnxModel",
    "OnnxSummary",
    "TensorInfo",
    "Variant",
    "compare_onnx",
    "export_onnx",
    "inspect_onnx",
]


def __getattr__(name: str) -> Any:
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    value = getattr(import_module(f".{_HOMES[name]}", __name__), name)
    globals()[name] = value
    return value
