"""ONNX files: written, verified in ONNX Runtime, measured and read back.

One stage a file, in the order in which an export runs them: ``deployable`` (a plain copy of the model), ``inputs`` and
``axes`` (what it is called with, what may vary), ``trials`` (what the model itself accepts), ``tracing`` (torch's
exporter), ``finishing`` and ``graph`` (names, metadata, the same bytes every time), ``verification`` (ONNX Runtime
against the model), ``report``. ``export`` puts them together, ``inspection`` reads any ONNX file. ``measuring`` holds
how bytes, milliseconds and errors are measured, ``running`` makes a file a torch module, ``comparison`` puts files side
by side.

An uncertainty file takes the same way. ``uncertainty`` (what was asked, the draws), ``networks`` (what is traced, and
what the file is compared with) and ``statistics`` (what it answers) come before the trials; after torch's exporter,
``members`` puts K networks into the graph and ``merging`` joins their first layers.
"""

try:
    import onnx as _onnx  # noqa: F401
    import onnxscript as _onnxscript  # noqa: F401  # torch.onnx needs it
except ImportError as err:
    raise ImportError(
        f"convert.onnx: needs {err.name}, which is not installed; "
        "install bensemble with its onnx extra, from the source tree: pip install '.[onnx]'."
    ) from err

from .export import export_onnx
from .files.comparison import Comparison, Variant, compare_onnx
from .files.inspection import inspect_onnx
from .files.report import ExportReport, OnnxSummary, TensorInfo
from .files.running import OnnxModel

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
