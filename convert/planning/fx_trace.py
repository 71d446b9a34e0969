"""What a forward does with each weight, as torch.fx sees it: without inputs, where it can trace the model at all.

The trace runs on a hollow copy, in which only the Parameters are the model's own.
"""

from __future__ import annotations

from collections import Counter
from typing import Any

from torch import fx, nn

from bensemble.layers.linear_in_weights import LinearOpLayer
from bensemble.layers.weights import PosteriorModule
from bensemble.models.undisturbed import undisturbed
from bensemble.torch_internals import clear_forward_hooks, pytree

from .analysis import Analysis
from .copying import hollow_copy
from .weight_paths import Trails, data_arguments, operation_name, writes_in_place

__all__ = ["trace_forward"]

#: Methods and attributes that tell a shape, dtype or device, which is neither weight nor data.
_SIZE_METHODS = ("size", "dim", "numel", "stride", "ndimension", "element_size")
_SIZE_ATTRIBUTES = ("shape", "dtype", "device", "ndim")


def trace_forward(model: nn.Module) -> Analysis:
    """What torch.fx sees, in the mode of each module and then in the other mode for what the first leaves out."""
    analysis = Analysis()
    with undisturbed(*model.parameters()):  # all that a hollow copy shares with the model
        if _trace(model, analysis) and not analysis.is_complete(model):
            _trace(model, analysis, flip=True)
    return analysis


def _trace(model: nn.Module, analysis: Analysis, flip: bool = False) -> bool:
    """Add what torch.fx sees to the analysis; False when it cannot trace the model."""
    hollow = hollow_copy(model)
    if hollow is None:
        return False
    for module in hollow.modules():
        clear_forward_hooks(module)
        module.training = module.training != flip
    try:
        graph = _Tracer().trace(hollow)
    except Exception:
        return False
    analysis.source = "fx"
    trails, calls = Trails(analysis.operations, analysis.altered), Counter[str]()
    for node in graph.nodes:
        if node.op == "call_module":
            calls[str(node.target)] += 1
            _record_inside(hollow, str(node.target), analysis)
        if node.op == "call_method" and writes_in_place(str(node.target)):
            analysis.written |= _parameter_behind(node.args[0], hollow)
        if node.op == "get_attr":
            tensor = _attribute(hollow, str(node.target))
            trails.start(node, id(tensor) if isinstance(tensor, nn.Parameter) else None)
            analysis.seen.add(id(tensor))
        elif _is_size(node):
            trails.start(node)
        elif any(trails.knows(source) for source in node.all_input_nodes):
            name, data = _operation(node, hollow)
            trails.apply(name, list(node.all_input_nodes), data, [node])
    analysis.calls |= calls
    return True


class _Tracer(fx.Tracer):
    """Calls the twins of torch.nn modules as a whole, as torch.fx does with torch.nn itself."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        kind = m.deterministic_class if isinstance(m, PosteriorModule) else None
        known = kind is not None and (isinstance(m, LinearOpLayer) or kind.__module__.startswith("torch.nn"))
        return known or super().is_leaf_module(m, module_qualified_name)


def _record_inside(model: nn.Module, path: str, analysis: Analysis) -> None:
    """Note the modules below a module that the trace calls as a whole: they run inside it."""
    for below, _ in model.get_submodule(path).named_modules():
        if below:
            analysis.inside.setdefault(f"{path}.{below}", path)


def _parameter_behind(node: Any, model: nn.Module) -> set[int]:
    """The identity of the Parameter that a node stands for, itself or through ``.data``."""
    while isinstance(node, fx.Node) and node.target is getattr and node.args[1] == "data":
        node = node.args[0]
    if not isinstance(node, fx.Node) or node.op != "get_attr":
        return set()
    tensor = _attribute(model, str(node.target))
    return {id(tensor)} if isinstance(tensor, nn.Parameter) else set()


def _attribute(model: nn.Module, target: str) -> Any:
    value: Any = model
    for part in target.split("."):
        value = getattr(value, part, None)
    return value


def _is_size(node: fx.Node) -> bool:
    if node.op == "call_method":
        return node.target in _SIZE_METHODS
    return node.op == "call_function" and node.target is getattr and node.args[1] in _SIZE_ATTRIBUTES


def _operation(node: fx.Node, model: nn.Module) -> tuple[str, list[fx.Node]]:
    """The plain name of what a node does, and those of its inputs that it takes as data."""
    if node.op == "call_module":
        module = model.get_submodule(str(node.target))
        stateless = not any(True for _ in module.parameters())
        return type(module).__name__, [] if stateless else list(node.all_input_nodes)
    name = operation_name(node.target)
    data = pytree.tree_leaves(data_arguments(name, node.args, node.kwargs))
    return name, [leaf for leaf in data if isinstance(leaf, fx.Node)]
