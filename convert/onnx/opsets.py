"""The lowest operator set that a graph needs: so old runtimes load it."""

from __future__ import annotations

import onnx
from onnx import defs

from .files.proto import operators

__all__ = ["lower_opset"]

#: The oldest operator set that is tried; torch's exporter translates to it first.
OLDEST = 18

#: Operators whose versions since OLDEST added element types alone, which these files do not hold.
ONLY_TYPES = {"Cast", "CastLike", "Constant", "ConstantOfShape", "Equal", "Flatten", "Identity", "If", "Loop"}
ONLY_TYPES |= {"QuantizeLinear", "DequantizeLinear", "ReduceMax", "ReduceMin", "Reshape", "Scan", "Shape", "Size"}
ONLY_TYPES |= {"Squeeze", "Transpose", "Unsqueeze", "IsNaN", "IsInf"}


def lower_opset(proto: onnx.ModelProto) -> None:
    """Declare the oldest operator set in which every operator of a graph means the same; in place.

    The checker of ONNX then accepts the graph with the types that it infers, or the declaration stays as it was.
    """
    entry = next((entry for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), None)
    if entry is None or entry.version <= OLDEST:
        return
    newest = entry.version
    for version in range(OLDEST, newest):
        if all(kind in ONLY_TYPES or _same(kind, version, newest) for kind in operators(proto)):
            entry.version = version
            try:
                onnx.checker.check_model(proto, full_check=True)
            except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError):
                entry.version = newest
                continue
            return


def _same(kind: str, version: int, newest: int) -> bool:
    """Whether an operator is the same in two operator sets."""
    try:
        return bool(defs.get_schema(kind, version).since_version == defs.get_schema(kind, newest).since_version)
    except defs.SchemaError:  # it did not exist yet
        return False
