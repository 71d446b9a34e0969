"""The graph of the smaller model: sizes, indices and splits are adapted to the channels that stay."""

from __future__ import annotations

import math
import operator
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx.node import map_arg

from bensemble.torch_internals import forget_tracer

from .atoms.domain import Value
from .atoms.flow import Flow
from .atoms.readers import Reader
from .cutting import Cut, install
from .solution import Solution, scaled

__all__ = ["needs_graph", "rewrite"]

#: What asks for the number of elements.
COUNTS = ("numel", torch.numel, torch.ops.aten.numel.default, torch.ops.aten.sym_numel.default)


def needs_graph(flow: Flow, solution: Solution) -> str | None:
    """Why the model's own forward cannot run with smaller weights, as far as the graph tells; None if it may."""
    for node, shortcut in flow.shortcuts.items():
        if not all(solution.is_product(value) for value in shortcut.through):
            return f"the channels behind {node.name} are no longer evenly divided"
    for reader in flow.readers:
        if reader.selects and not solution.stays(reader.inputs).all():
            return f"{reader.node.name} reads a part of its input"
    return None


def rewrite(flow: Flow, solution: Solution, cut: Cut) -> fx.GraphModule:
    """The graph with smaller weights, as a module of its own."""
    root, graph = flow.captured.module, flow.captured.module.graph
    for node, value in flow.sizes:
        _keep_size(node, value, solution)
    for node, change in flow.edits:
        if _is_regular(flow, node, solution):
            change(node, solution)
    _take_shortcuts(root, flow, solution)
    for reader in flow.readers:
        _select_inputs(root, flow, reader, solution)
    install(root, cut, keep_class=False)
    _pass_biases(flow, cut)
    graph.lint()
    forget_tracer(graph)  # the pickle shall load where neither this package nor the model is there
    return fx.GraphModule(root, graph, type(root).__name__)


def _is_regular(flow: Flow, node: fx.Node, solution: Solution) -> bool:
    """Whether what a node takes and gives are tensors after the removal."""
    found: list[Value] = []
    for other in (node, *node.all_input_nodes):
        value = flow.values.get(other)
        found += [v for v in (value if isinstance(value, tuple) else (value,)) if isinstance(v, Value)]
    return all(value.leaf is not None or solution.is_product(value) for value in found)


def _keep_size(node: fx.Node, value: Value, solution: Solution) -> None:
    """Scale a size back to what it was before the removal; movements get their new sizes from their own edits."""
    before, after = value.shape, solution.shape(value)
    if before == after:
        return
    graph, users = node.graph, list(node.users)
    asked = node.args[1] if len(node.args) > 1 and isinstance(node.args[1], int) else node.kwargs.get("dim")
    with graph.inserting_before(node.next):
        if node.target in COUNTS:
            new: Any = scaled(graph, node, math.prod(before), math.prod(after))
        elif isinstance(asked, int):
            new = scaled(graph, node, before[asked], after[asked])
        else:
            sizes = [graph.call_function(operator.getitem, (node, k)) for k in range(len(before))]
            new = tuple(scaled(graph, size, b, a) for size, b, a in zip(sizes, before, after, strict=True))
    for user in users:
        user.args = map_arg(user.args, lambda other: new if other is node else other)
        user.kwargs = map_arg(user.kwargs, lambda other: new if other is node else other)


def _take_shortcuts(root: nn.Module, flow: Flow, solution: Solution) -> None:
    """Replace movements by an index where the values in between can no longer be tensors."""
    for node, shortcut in flow.shortcuts.items():
        if all(solution.is_product(value) for value in shortcut.through):
            continue
        source, target = (solution.alive_axes(flow.values[n])[shortcut.axis] for n in (shortcut.source, node))
        places = shortcut.positions if target is None else shortcut.positions[target]
        if source is not None:
            places = (source.long().cumsum(0) - 1)[places]
        with node.graph.inserting_before(node):
            new = _index_select(root, node, shortcut.source, shortcut.axis, places)
        node.replace_all_uses_with(new)
        _erase_unused(node)


def _select_inputs(root: nn.Module, flow: Flow, reader: Reader, solution: Solution) -> None:
    stays = solution.stays(reader.inputs)
    if not reader.selects or stays.all():
        return
    node = reader.node
    source = node.all_input_nodes[0]
    with node.graph.inserting_before(node):
        # Chosen along the first axis: copying rows is many times faster than picking elements.
        turned = node.graph.call_function(torch.transpose, (source, 0, -1))
        chosen = _index_select(root, node, turned, 0, stays.nonzero().flatten())
        new = node.graph.call_function(torch.transpose, (chosen, 0, -1))
    node.replace_input_with(source, new)


def _index_select(root: nn.Module, node: fx.Node, source: fx.Node, axis: int, positions: Tensor) -> fx.Node:
    """A new index_select, its index kept as a buffer of the graph's module."""
    name = f"{node.name}_channels"
    device = next((t.device for t in (*root.parameters(), *root.buffers())), torch.device("cpu"))
    root.register_buffer(name, positions.to(device))
    index = node.graph.get_attr(name)
    return node.graph.call_function(torch.index_select, (source, axis, index))


def _erase_unused(node: fx.Node) -> None:
    """Erase a node that has no users any more, and then its sources."""
    if node.users or node.op in ("placeholder", "output"):
        return
    sources = node.all_input_nodes
    node.graph.erase_node(node)
    for source in sources:
        _erase_unused(source)


def _pass_biases(flow: Flow, cut: Cut) -> None:
    """Hand new biases to functions; modules find them by themselves."""
    for reader in flow.readers:
        if reader.new_bias in cut.biases and reader.node.op == "call_function":
            node = reader.node
            with node.graph.inserting_before(node):
                bias = node.graph.get_attr(reader.new_bias)
            if len(node.args) > 1:
                node.args = (*node.args[:2], bias, *node.args[3:])
            else:
                node.update_kwarg("bias", bias)
