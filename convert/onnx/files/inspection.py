"""Reading any ONNX file: names, shapes, metadata, sizes, weights and zeros."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import onnx
from google.protobuf.message import DecodeError
from onnx import numpy_helper
from onnx.external_data_helper import load_external_data_for_model, uses_external_data

from bensemble.errors import InvalidTypeError, InvalidValueError, shown

from ...runtime.files import DIGEST_KEY, UncertaintyFileError, check_digest
from .proto import operators, tensors
from .report import OnnxSummary, TensorInfo, gzip_size

__all__ = ["inspect_onnx", "summarize"]

S = TypeVar("S", bound=OnnxSummary)

#: Element types of weights. Integers of 32 and 64 bits are shapes, indices and biases of quantised layers.
WEIGHT_TYPES = {
    number
    for name, number in onnx.TensorProto.DataType.items()
    if name.startswith(("FLOAT", "BFLOAT", "DOUBLE", "COMPLEX", "INT8", "UINT8", "INT4", "UINT4"))
}

#: Inputs of quantised operators that are scales and zero points.
SCALE_INPUTS = {"QuantizeLinear": (1, 2), "DequantizeLinear": (1, 2), "MatMulInteger": (2, 3), "ConvInteger": (2, 3)}


def inspect_onnx(path: str | os.PathLike[str]) -> OnnxSummary:
    """Read an ONNX file without running it.

    Args:
        path: An ONNX file; its weights may lie in other files of its folder.

    Raises:
        InvalidTypeError: ``path`` is not a path.
        InvalidValueError: The file does not exist, cannot be read, or is not ONNX.

    Example:
        >>> print(convert.inspect_onnx("sure.onnx"))
    """
    if not isinstance(path, (str, os.PathLike)):
        raise InvalidTypeError(f"inspect_onnx: path must be a string or a Path, got {type(path).__name__}.")
    file = Path(path)
    try:
        if file.exists() and not file.is_file() and not file.is_dir():
            raise OSError(0, "it is a device or a pipe")
        data = file.read_bytes()
    except OSError as err:
        raise InvalidValueError(f"inspect_onnx: '{file}' cannot be read, {err.strerror}; check the path.") from err
    proto = onnx.ModelProto()
    try:
        check_digest(file)
        proto.ParseFromString(data)
    except UncertaintyFileError as err:
        raise InvalidValueError(f"inspect_onnx: '{file}' is damaged, got {err}; get the file again.") from err
    except DecodeError:
        proto.Clear()
    if not proto.ir_version or not proto.opset_import or not proto.graph.output:
        raise InvalidValueError(
            f"inspect_onnx: '{file}' is not an ONNX file, got {len(data)} bytes of something else; give a file that an "
            "ONNX exporter wrote."
        )
    _check_text(file, proto)
    beside = sorted(
        {
            entry.value
            for tensor in tensors(proto)
            if isinstance(tensor, onnx.TensorProto) and uses_external_data(tensor)
            for entry in tensor.external_data
            if entry.key == "location"
        }
    )
    try:
        data += b"".join(_beside(file, name).read_bytes() for name in beside)
        load_external_data_for_model(proto, str(file.parent))
    except (OSError, ValueError, onnx.checker.ValidationError) as err:
        raise InvalidValueError(
            f"inspect_onnx: '{file}' keeps weights in {shown(', '.join(map(repr, beside)), 200)}, which "
            "cannot be read; put the files beside it."
        ) from err
    try:
        return summarize(OnnxSummary, file, proto, data)
    except (ArithmeticError, LookupError, MemoryError, TypeError, ValueError) as err:
        raise InvalidValueError(
            f"inspect_onnx: the weights in '{file}' are damaged, got {shown(err, 200)}; get the file again."
        ) from err


def _beside(file: Path, name: str) -> Path:
    """A file of weights, which may only lie in the folder of the graph or below it."""
    other, folder = (file.parent / name).resolve(), file.parent.resolve()
    if folder not in other.parents or not other.is_file():
        raise ValueError(f"{name!r} is not a file in the folder")
    return other


def _check_text(file: Path, proto: onnx.ModelProto) -> None:
    """Refuse names that are not text: protobuf returns them as bytes."""
    values = [*proto.graph.input, *proto.graph.output]
    names = [text for entry in proto.metadata_props for text in (entry.key, entry.value)]
    names += [value.name for value in values] + list(operators(proto))
    names += [dim.dim_param for value in values for dim in value.type.tensor_type.shape.dim]
    if not all(isinstance(name, str) for name in names):
        raise InvalidValueError(f"inspect_onnx: '{file}' is damaged, got a name that is not text; get the file again.")


def summarize(kind: type[S], path: Path, proto: onnx.ModelProto, data: bytes, **more: Any) -> S:
    """The summary of a file with that content and those bytes, or a report, which has ``more`` fields."""
    scales = _scales(proto)
    counts = [_weights(tensor) for tensor in tensors(proto) if _values(tensor).name not in scales]
    initializers = {tensor.name for tensor in proto.graph.initializer}
    return kind(
        path=path,
        size=len(data),
        gzip_size=gzip_size(data),
        inputs=tuple(_info(value) for value in proto.graph.input if value.name not in initializers),
        outputs=tuple(_info(value) for value in proto.graph.output),
        parameters=sum(count for count, _ in counts),
        zeros=sum(zeros for _, zeros in counts),
        opset=next((entry.version for entry in proto.opset_import if entry.domain in ("", "ai.onnx")), 0),
        operators=operators(proto),
        metadata={entry.key: entry.value for entry in proto.metadata_props if entry.key != DIGEST_KEY},
        **more,
    )


def _weights(tensor: onnx.TensorProto | onnx.SparseTensorProto) -> tuple[int, int]:
    """Number of weights in a tensor, and how many are zero; (0, 0) for scalars and for shapes and indices."""
    values = _values(tensor)
    if not tensor.dims or values.data_type not in WEIGHT_TYPES:
        return 0, 0
    total = int(np.prod(tensor.dims))
    return total, total - int(np.count_nonzero(numpy_helper.to_array(values)))


def _values(tensor: onnx.TensorProto | onnx.SparseTensorProto) -> onnx.TensorProto:
    """The stored entries of a tensor, under its name."""
    return tensor.values if isinstance(tensor, onnx.SparseTensorProto) else tensor


def _scales(proto: onnx.ModelProto) -> set[str]:
    """Names of the scales and zero points of quantised tensors, which do not count as weights."""
    found = ((node, SCALE_INPUTS.get(node.op_type, ())) for node in proto.graph.node)
    return {node.input[place] for node, places in found for place in places if place < len(node.input)}


def _info(value: onnx.ValueInfoProto) -> TensorInfo:
    kind = value.type.tensor_type
    name = onnx.TensorProto.DataType.Name(kind.elem_type).lower()
    dtype = {"float": "float32", "double": "float64"}.get(name, name)
    return TensorInfo(value.name, dtype, tuple(dim.dim_param or dim.dim_value for dim in kind.shape.dim))
