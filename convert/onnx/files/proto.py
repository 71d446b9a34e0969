"""Changes to an ONNX graph: readable names, metadata, nothing that differs from export to export; and what it holds."""

from __future__ import annotations

import hashlib
import re
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence

import numpy as np
import onnx
from google.protobuf.message import Message
from onnx import numpy_helper

__all__ = [
    "captured",
    "correct_output_shapes",
    "drop_unused_constants",
    "forget_inner_shapes",
    "operators",
    "rename_captured",
    "rename_symbols",
    "rename_values",
    "share_transposed",
    "strip",
    "tensors",
]


def strip(message: Message) -> None:
    """Remove doc strings and metadata of a model and all its parts: stack traces, with paths of this machine."""
    for field in ("doc_string", "metadata_props"):
        if field in message.DESCRIPTOR.fields_by_name:
            message.ClearField(field)
    for field, value in message.ListFields():
        if field.message_type is not None:
            for part in [value] if isinstance(value, Message) else value:
                strip(part)


def forget_inner_shapes(proto: onnx.ModelProto) -> None:
    """Remove the shapes of inner values: some are those of the example alone, and a runtime infers them all."""
    for graph in _graphs(proto.graph):
        del graph.value_info[:]


def drop_unused_constants(proto: onnx.ModelProto) -> None:
    """Remove initializers that no operator reads any more, of which ONNX Runtime warns."""
    graphs = list(_graphs(proto.graph))
    used = {name for graph in graphs for node in graph.node for name in node.input}
    used |= {value.name for graph in graphs for value in graph.output}
    kept = [tensor for tensor in proto.graph.initializer if tensor.name in used]
    del proto.graph.initializer[:]
    proto.graph.initializer.extend(kept)


def rename_values(proto: onnx.ModelProto, wanted: Mapping[str, str]) -> None:
    """Rename values everywhere; another value that already has a wanted name gets a new one."""
    taken = {name for graph in _graphs(proto.graph) for name in _defined(graph)}
    names = {old: new for old, new in wanted.items() if old in taken}
    for name in sorted(set(names.values()) & (taken - set(names))):
        other = f"{name}_"
        while other in taken or other in names.values():
            other += "_"
        names[name] = other
    for graph in _graphs(proto.graph):
        for value in (*graph.input, *graph.output, *graph.initializer):
            value.name = names.get(value.name, value.name)
        for sparse in graph.sparse_initializer:
            sparse.values.name = names.get(sparse.values.name, sparse.values.name)
        for node in graph.node:
            node.input[:] = [names.get(name, name) for name in node.input]
            node.output[:] = [names.get(name, name) for name in node.output]


def captured(node: onnx.NodeProto) -> Iterator[str]:
    """The names of all values that a node reads, those that its loops and branches read from outside included."""
    yield from (name for name in node.input if name)
    for body in _bodies(node):
        own = set(_defined(body))
        for inner in body.node:
            yield from (name for name in captured(inner) if name not in own)
        yield from (value.name for value in body.output if value.name not in own)


def rename_captured(node: onnx.NodeProto, names: Mapping[str, str]) -> None:
    """Make a node, with its loops and branches, read other values."""
    node.input[:] = [names.get(name, name) for name in node.input]
    for body in _bodies(node):
        own = set(_defined(body))
        outer = {old: new for old, new in names.items() if old not in own}
        for inner in body.node:
            rename_captured(inner, outer)
        for value in body.output:
            value.name = outer.get(value.name, value.name)


def share_transposed(proto: onnx.ModelProto, smallest: int = 1024) -> None:
    """Store a matrix once where the graph needs it and its transpose, as tied embeddings and heads do.

    The exporter transposes weights ahead of time, and so writes a tied weight twice. ONNX Runtime also transposes ahead
    of time, when it loads a file, so this costs no latency.

    Args:
        proto: The model; it is changed in place.
        smallest: Smaller matrices, by number of entries, stay as they are.
    """
    graph = proto.graph
    matrices = [tensor for tensor in graph.initializer if len(tensor.dims) == 2 and np.prod(tensor.dims) >= smallest]
    stored: dict[tuple[int, bytes], str] = {}
    for tensor in sorted(matrices, key=lambda tensor: ("." not in tensor.name, tensor.name)):  # parameters first
        array = numpy_helper.to_array(tensor)
        source = stored.get((tensor.data_type, _digest(array.T)))
        if source is None:
            stored[tensor.data_type, _digest(array)] = tensor.name
            continue
        node = onnx.helper.make_node("Transpose", [source], [tensor.name], f"transpose_{source}", perm=[1, 0])
        graph.node.insert(0, node)
        graph.initializer.remove(tensor)


def rename_symbols(proto: onnx.ModelProto, names: Mapping[str, str]) -> None:
    """Rename the symbols of dynamic axes, also inside expressions such as ``2*s7``."""
    if not names:
        return
    pattern = re.compile(r"\b(" + "|".join(map(re.escape, names)) + r")\b")
    for graph in _graphs(proto.graph):
        for value in (*graph.input, *graph.output):
            for dim in value.type.tensor_type.shape.dim:
                if dim.dim_param:
                    dim.dim_param = pattern.sub(lambda match: names[match.group(1)], dim.dim_param)


def correct_output_shapes(
    proto: onnx.ModelProto,
    observed: Sequence[tuple[Sequence[int], Sequence[int]]],
    sizes: Mapping[str, tuple[int, int]],
) -> None:
    """Correct the shapes of outputs where the exporter is wrong: the number of axes, and axes taken for constants.

    Args:
        proto: The model.
        observed: The shapes of every output in two trials.
        sizes: The sizes of every dynamic axis in the same trials, by name.
    """
    for output, (first, second) in zip(proto.graph.output, observed, strict=True):
        dims = output.type.tensor_type.shape.dim
        if len(first) != len(second):  # the model squeezes a size of one
            continue
        if len(dims) != len(first):  # torch 2.10 gives the states of an LSTM one axis too many
            del dims[:]
            dims.extend(onnx.TensorShapeProto.Dimension(dim_value=size) for size in first)
        for axis, dim in enumerate(dims):
            pair = first[axis], second[axis]
            if not dim.dim_param and pair[0] != pair[1]:
                names = [name for name, varied in sizes.items() if varied == pair]
                dim.dim_param = names[0] if names else f"{output.name}_{axis}"


def operators(proto: onnx.ModelProto) -> dict[str, int]:
    """How often each operator occurs, the most frequent first."""
    counts = Counter(node.op_type for node in _nodes(proto))
    return dict(sorted(counts.items(), key=lambda item: (-item[1], str(item[0]))))


def tensors(proto: onnx.ModelProto) -> Iterator[onnx.TensorProto | onnx.SparseTensorProto]:
    """Every stored tensor: initializers, dense and sparse, and constants, also of subgraphs and functions."""
    for graph in _graphs(proto.graph):
        yield from graph.initializer
        yield from graph.sparse_initializer
    for node in _nodes(proto):
        for attribute in node.attribute:
            if attribute.HasField("t"):
                yield attribute.t
            elif attribute.HasField("sparse_tensor"):
                yield attribute.sparse_tensor


def _nodes(proto: onnx.ModelProto) -> Iterator[onnx.NodeProto]:
    """The nodes of all graphs and functions."""
    for graph in (*_graphs(proto.graph), *proto.functions):
        yield from graph.node


def _graphs(graph: onnx.GraphProto) -> Iterator[onnx.GraphProto]:
    """The graph and the bodies of its loops and branches."""
    yield graph
    for node in graph.node:
        for body in _bodies(node):
            yield from _graphs(body)


def _bodies(node: onnx.NodeProto) -> Iterator[onnx.GraphProto]:
    """The bodies of the loops and branches of a node."""
    for attribute in node.attribute:
        yield from (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs)


def _digest(array: np.ndarray) -> bytes:
    """The same for equal matrices of the same shape, whatever their layout."""
    return hashlib.sha256(repr(array.shape).encode() + np.ascontiguousarray(array).tobytes()).digest()


def _defined(graph: onnx.GraphProto) -> Iterator[str]:
    for value in (*graph.input, *graph.initializer):
        yield value.name
    for sparse in graph.sparse_initializer:
        yield sparse.values.name
    for node in graph.node:
        yield from node.output
