"""K weight draws inside one graph: copies of everything that depends on a drawn weight, one for each draw.

The model is traced once, with a marker between its output and the statistics: a custom operator that takes the output
of one network and returns the stack of K. This pass replaces the marker: the nodes between the drawn weights and the
marker are copied K times, each copy with its own weights. Nodes that depend on no drawn weight, mainly those before the
first posterior, stay as they are and are computed once.

In the same way, :func:`through` follows another tensor than a layer's output through what comes after the layer.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence

import onnx
import torch
from torch import Tensor

from bensemble.errors import ExportError

from ..files.proto import captured, rename_captured
from .draws import draw_name

__all__ = ["members", "replicate", "through"]

DOMAIN, MEMBERS, THROUGH = "bensemble", "Members", "Through"


def members(output: Tensor, count: int, index: int = 0) -> Tensor:
    """The marker for the outputs of ``count`` networks that are traced as one.

    Args:
        output: Output of the network, shape (B, ...).
        count: Number of draws K.
        index: Which network of an ensemble it is.

    Returns:
        A symbolic tensor of shape (K, B, ...), for tracing only.
    """
    return torch.onnx.ops.symbolic(
        f"{DOMAIN}::{MEMBERS}",
        (output,),
        {"count": count, "index": index},
        dtype=output.dtype,
        shape=(count, *output.shape),
        version=1,
    )


def through(output: Tensor, result: Tensor, other: Tensor, shape: Sequence[int] | None = None) -> Tensor:
    """The marker for what an output would be, if something on the way to it were another tensor.

    Args:
        output: The output.
        result: What it was computed from.
        other: What stands in its place, in its dtype and, with the default ``shape``, in its shape.
        shape: Of what comes of it; default that of the output.

    Returns:
        A symbolic tensor of that shape, for tracing only.
    """
    shape = output.shape if shape is None else shape
    return torch.onnx.ops.symbolic(
        f"{DOMAIN}::{THROUGH}", (output, result, other), dtype=output.dtype, shape=shape, version=1
    )


def replicate(proto: onnx.ModelProto, drawn: Collection[str]) -> None:
    """Replace every marker by copies of the nodes before it.

    Args:
        proto: The model as the exporter translated it, before it was optimized; it is changed in place.
        drawn: The names of the drawn weights. Copy k reads ``draw_name(name, k)`` in place of each.

    Raises:
        ExportError: No drawn weight reaches a marker.
    """
    graph = proto.graph
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        if node.domain != DOMAIN:
            nodes.append(node)
        elif node.op_type == MEMBERS:
            nodes += list(_stacked(node, nodes, drawn))
        else:
            nodes += list(_followed(node, nodes))
    for node in nodes:  # other readers of a copied value, such as those of its shape, take draw 0
        rename_captured(node, {name: draw_name(name, 0) for name in drawn})
    del graph.node[:]
    graph.node.extend(_read(nodes, {value.name for value in graph.output}))
    del graph.value_info[:]
    kept = [entry for entry in proto.opset_import if entry.domain != DOMAIN]
    del proto.opset_import[:]
    proto.opset_import.extend(kept)


def _stacked(
    marker: onnx.NodeProto, before: Sequence[onnx.NodeProto], drawn: Collection[str]
) -> Iterator[onnx.NodeProto]:
    """The copies of the network that ends at a marker, and the stack of their outputs under the marker's name."""
    settings = {attribute.name: attribute.i for attribute in marker.attribute}
    count, index = settings["count"], settings["index"]
    needed, repeated = _read(before, {marker.input[0]}), set(drawn)
    for node in before:
        if repeated.intersection(captured(node)):
            repeated.update(node.output)
    if marker.input[0] not in repeated and count > 1:
        raise ExportError(
            "export_onnx: outputs='uncertainty' needs a posterior that reaches the output, got an output that depends "
            "on none; see convert.check_noise, or export outputs='mean'."
        )
    copied = [node for node in needed if repeated.intersection(node.output)]
    ends = []
    for k in range(count):
        copies, names = _copies(copied, f"{index}.{k}", {name: draw_name(name, k) for name in drawn})
        for node in copies[: len(copies) if k else 0]:
            node.name = ""  # those of the first draw are enough for messages
        yield from copies
        ends.append(f"{marker.output[0]}.{k}")
        axes = f"{marker.output[0]}.axis.{k}"
        yield onnx.helper.make_node("Constant", [], [axes], axes, value_ints=[0])
        yield onnx.helper.make_node(
            "Unsqueeze", [names.get(marker.input[0], marker.input[0]), axes], [ends[-1]], ends[-1]
        )
    yield onnx.helper.make_node("Concat", ends, [marker.output[0]], marker.output[0], axis=0)


def _followed(marker: onnx.NodeProto, before: Sequence[onnx.NodeProto]) -> Iterator[onnx.NodeProto]:
    """The copies of the nodes from a layer's output to the model's, with another tensor in place of the first."""
    output, result, other = marker.input
    changed, copied = {result}, []
    for node in _read(before, {output}):
        if changed.intersection(captured(node)):
            changed.update(node.output)
            copied.append(node)
    copies, names = _copies(copied, marker.output[0], {result: other})
    yield from copies
    yield onnx.helper.make_node("Identity", [names.get(output, output)], [marker.output[0]], marker.name)


def _copies(
    nodes: Sequence[onnx.NodeProto], suffix: str, replaced: Mapping[str, str]
) -> tuple[list[onnx.NodeProto], dict[str, str]]:
    """Copies of nodes that read other values, and the new name of every value that changes."""
    names = {name: f"{name}.{suffix}" for node in nodes for name in node.output if name} | dict(replaced)
    copies = []
    for node in nodes:
        copy = onnx.NodeProto()
        copy.CopyFrom(node)
        copy.name = f"{node.name}.{suffix}"
        rename_captured(copy, names)
        copy.output[:] = [names.get(name, name) for name in node.output]
        copies.append(copy)
    return copies, names


def _read(nodes: Sequence[onnx.NodeProto], ends: set[str]) -> list[onnx.NodeProto]:
    """The nodes that the ends depend on, in order."""
    needed, kept = set(ends), []
    for node in reversed(nodes):
        if needed.intersection(node.output):
            needed.update(captured(node))
            kept.append(node)
    return kept[::-1]
