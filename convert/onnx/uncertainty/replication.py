"""K weight draws inside one graph: everything that depends on a drawn weight, once for each draw.

The model is traced once. Where its output enters the statistics stands a marker, an operator of our own that takes the
output of one network and gives the stack of K. This pass replaces it: the nodes between the drawn weights and the
marker are copied K times, each copy with its own weights; what depends on no drawn weight, the trunk before the first
posterior above all, stays as it is and is computed once.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence

import onnx
import torch
from torch import Tensor

from bensemble.errors import ExportError

from ..files.proto import captured, rename_captured

__all__ = ["members", "replicate"]

DOMAIN, MARKER = "bensemble", "Members"


def members(output: Tensor, count: int, index: int = 0) -> Tensor:
    """The marker: stands for the outputs of ``count`` networks that are traced as one.

    Args:
        output: Output of the network, shape (B, ...).
        count: Number of draws K.
        index: Which network of an ensemble it is.

    Returns:
        A symbolic tensor of shape (K, B, ...), to trace and not to run.
    """
    return torch.onnx.ops.symbolic(
        f"{DOMAIN}::{MARKER}",
        (output,),
        {"count": count, "index": index},
        dtype=output.dtype,
        shape=(count, *output.shape),
        version=1,
    )


def replicate(proto: onnx.ModelProto, draws: Mapping[str, Sequence[Tensor]]) -> None:
    """Replace every marker by copies of the network before it, one for each weight draw.

    Args:
        proto: The model as the exporter translated it, before it was optimized; it is changed in place.
        draws: K tensors for each drawn weight, by the name of its initializer.

    Raises:
        ExportError: No drawn weight reaches a marker.
    """
    graph = proto.graph
    stored = {tensor.name: tensor for tensor in graph.initializer}
    drawn = {name: values for name, values in draws.items() if name in stored}
    nodes: list[onnx.NodeProto] = []
    for node in graph.node:
        if node.domain == DOMAIN and node.op_type == MARKER:
            nodes += list(_stacked(node, nodes, drawn))
        else:
            nodes.append(node)
    for node in nodes:  # where more than the stack reads a copied value, its shape for one, draw 0 stands for all
        rename_captured(node, {name: _draw_name(name, 0) for name in drawn})
    del graph.node[:]
    graph.node.extend(_read(nodes, {value.name for value in graph.output}))
    for name, values in drawn.items():
        graph.initializer.remove(stored[name])
        for k, value in enumerate(values):
            data = value.detach().contiguous().flatten().view(torch.uint8).numpy().tobytes()
            graph.initializer.append(
                onnx.TensorProto(
                    name=_draw_name(name, k), data_type=stored[name].data_type, dims=value.shape, raw_data=data
                )
            )
    del graph.value_info[:]
    kept = [entry for entry in proto.opset_import if entry.domain != DOMAIN]
    del proto.opset_import[:]
    proto.opset_import.extend(kept)


def _stacked(
    marker: onnx.NodeProto, before: Sequence[onnx.NodeProto], drawn: Mapping[str, Sequence[Tensor]]
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
        names = {name: f"{name}.{index}.{k}" for node in copied for name in node.output if name}
        names |= {name: _draw_name(name, k) for name in drawn}
        for node in copied:
            copy = onnx.NodeProto()
            copy.CopyFrom(node)
            copy.name = f"{node.name}.{index}.{k}"
            rename_captured(copy, names)
            copy.output[:] = [names.get(name, name) for name in node.output]
            yield copy
        ends.append(f"{marker.output[0]}.{k}")
        axes = f"{marker.output[0]}.axis.{k}"
        yield onnx.helper.make_node("Constant", [], [axes], axes, value_ints=[0])
        yield onnx.helper.make_node(
            "Unsqueeze", [names.get(marker.input[0], marker.input[0]), axes], [ends[-1]], ends[-1]
        )
    yield onnx.helper.make_node("Concat", ends, [marker.output[0]], marker.output[0], axis=0)


def _read(nodes: Sequence[onnx.NodeProto], ends: set[str]) -> list[onnx.NodeProto]:
    """The nodes that the ends depend on, in order."""
    needed, kept = set(ends), []
    for node in reversed(nodes):
        if needed.intersection(node.output):
            needed.update(captured(node))
            kept.append(node)
    return kept[::-1]


def _draw_name(name: str, k: int) -> str:
    return f"{name}.draw{k}"
