"""The optimizer of torch's exporter, without its tolerance for constants and its appetite for bytes.

Its rules drop ``x + c`` where c is within 1e-8 of 0, and ``x * c`` where c is within 1e-5 of 1. But such a constant is
often all that stands between a division and 0. And where a graph makes floats of a constant in int8, it stores the
floats, which are four times as large.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace

import onnx_ir
from onnxscript.rewriter import _matcher

__all__ = ["bytes_kept", "exact_constants"]

#: The least number of bytes that are worth an operation when a file is loaded.
LEAST_BYTES = 1024


@contextmanager
def exact_constants() -> Iterator[None]:
    """Compare whole numbers in the patterns of onnxscript's rules exactly; every dtype holds them exactly."""

    def matches(value: float, wanted: float, *, rel_tol: float, abs_tol: float) -> bool:
        whole = float(wanted).is_integer()
        return value == wanted if whole else math.isclose(value, wanted, rel_tol=rel_tol, abs_tol=abs_tol)

    names = vars(_matcher)
    kept, names["math"] = names["math"], SimpleNamespace(isclose=matches)
    try:
        yield
    finally:
        names["math"] = kept


@contextmanager
def bytes_kept(graph: onnx_ir.Graph) -> Iterator[None]:
    """Show large constants in int8 to the optimizer as inputs, whose values it cannot know."""
    held = [
        (name, value, value.const_value)
        for name, value in graph.initializers.items()
        if value.const_value is not None
        and value.dtype == onnx_ir.DataType.INT8
        and value.const_value.size >= LEAST_BYTES
    ]
    for name, value, _ in held:
        del graph.initializers[name]
        value.const_value = None
        graph.inputs.append(value)
    try:
        yield
    finally:
        for _, value, tensor in held:
            graph.inputs.remove(value)
            value.const_value = tensor
            graph.initializers.add(value)
