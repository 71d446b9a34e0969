"""The forward pass: every node of a graph becomes a call, and its rule says what is known about the result."""

from __future__ import annotations

import builtins
import operator
from dataclasses import replace
from typing import Any

import torch
from torch import fx, nn

from bensemble.errors import one_line
from bensemble.torch_internals import OpOverload, argument_schema, pytree

from ..capture import Capture, TensorMeta
from .atoms.calls import Call
from .atoms.domain import Value
from .atoms.flow import Flow
from .rules import RULES, Rule, as_function

__all__ = ["propagate"]

#: Operations of the operator module under another name than the tensor method, without "in place".
OPERATORS = {
    operator.itruediv: "div",
    operator.floordiv: "floor_divide",
    operator.mod: "remainder",
    operator.iadd: "add",
    operator.isub: "sub",
    operator.imul: "mul",
    operator.ipow: "pow",
}
#: What asks for the size of a tensor.
SIZES = frozenset(["shape", "size", "numel", "sym_size", "sym_numel"])
#: New tensors that take no more than dtype and device from their operand.
CREATIONS = frozenset(["new_zeros", "new_ones", "new_full", "new_empty", "new_tensor"])
#: Answers about a tensor that no removal changes, and checks.
# fmt: off
QUESTIONS = frozenset([
    "dim", "ndim", "dtype", "device", "is_floating_point", "is_complex", "is_cuda", "requires_grad", "layout", "len",
    "is_contiguous", "get_device", "eq", "ne", "lt", "le", "gt", "ge", "_assert", "_assert_is_none", "_assert_scalar",
    "_assert_tensor_metadata", "sym_constrain_range", "sym_constrain_range_for_size",
])
# fmt: on


def propagate(captured: Capture, model: nn.Module) -> Flow:
    """Run the rules over a graph; the model holds its parameters and buffers."""
    flow = Flow(captured, model)
    for node in captured.module.graph.nodes:
        flow.values[node] = _value(flow, node)
        _apply_writes(flow, node)
    return flow


def _value(flow: Flow, node: fx.Node) -> Any:
    meta = flow.captured.metas.get(node)
    if node.op == "placeholder":
        inputs = flow.opaque_results(meta, "it is an input of the model")
        return pytree.tree_map_only(Value, lambda value: replace(value, from_inputs=True), inputs)
    if node.op == "get_attr":
        return _attribute(flow, node, meta)
    call = _call(flow, node, meta)
    if node.op == "output":
        for value in call.operands:
            flow.pin(value, "it is an output of the model")
        return None
    if node in flow.captured.unchanged and isinstance(flow.values[flow.captured.unchanged[node]], Value):
        return flow.operand(flow.values[flow.captured.unchanged[node]])
    if node.op == "call_module":
        return _module_value(flow, call, str(node.target))
    if not call.operands or call.name in CREATIONS:
        return flow.opaque_results(meta, "it is not made from the inputs or weights")
    if call.name in SIZES:
        flow.sizes.append((node, flow.operand(call.operands[0])))
        return meta
    if call.name in QUESTIONS and not any(isinstance(leaf, TensorMeta) for leaf in pytree.tree_leaves(meta)):
        return meta
    rule = RULES.get(call.name)
    if rule is None:
        name = call.name or str(getattr(node.target, "__name__", node.target))
        return flow.unknown(call, f"{name} is not followed")
    return _followed(rule, flow, call)


def _followed(rule: Rule, flow: Flow, call: Call) -> Any:
    """What a rule says; where it meets arguments of a kind that it does not know, the operation is not followed."""
    try:
        return rule(flow, call)
    except (TypeError, ValueError, IndexError, KeyError, AttributeError) as err:
        return flow.unknown(call, f"{call.name} in a form that is not followed ({one_line(err)})")


def _module_value(flow: Flow, call: Call, path: str) -> Any:
    """What the rule of the module's function says; without one, its weights stay as they are."""
    module = flow.captured.module.get_submodule(path)
    own_tensor = any(isinstance(value, torch.Tensor) for value in vars(module).values())
    function = None if path in flow.captured.hooked or own_tensor else as_function(flow, call, module, path)
    if function is not None:
        return _followed(RULES[function.name], flow, function)
    reason = f"{type(module).__name__} is not followed"
    if path in flow.captured.hooked:
        reason = f"'{path}' has hooks"
    elif own_tensor:
        reason = f"'{path}' holds a tensor that is neither parameter nor buffer"
    held = [name for name, _ in (*module.named_parameters(), *module.named_buffers())]
    for name in held:
        flow.freeze(f"{path}.{name}")
    return flow.unknown(call, reason, hides_weights=bool(held))


def _call(flow: Flow, node: fx.Node, meta: Any) -> Call:
    args, kwargs = pytree.tree_map(
        lambda leaf: flow.values[leaf] if isinstance(leaf, fx.Node) else leaf, (tuple(node.args), dict(node.kwargs))
    )
    target: Any = node.target
    if node.op == "call_module":
        return Call(node, "", args, kwargs, meta, flow.captured.module.get_submodule(str(target)))
    if node.op == "call_method":
        return Call(node, _plain(target), args, kwargs, meta, getattr(torch.Tensor, target, operator.pos))
    if node.op == "output":
        return Call(node, "output", args, kwargs, meta, operator.pos)
    return Call(node, _function_name(node, target), args, kwargs, meta, target)


def _function_name(node: fx.Node, target: Any) -> str:
    """The name under which a function has a rule; the empty string for functions from elsewhere."""
    if isinstance(target, OpOverload):
        return _plain(argument_schema(target).name.partition("::")[2]) if target.namespace == "aten" else ""
    if target is builtins.getattr:
        return str(node.args[1])
    if target in OPERATORS:
        return OPERATORS[target]
    home = getattr(target, "__module__", None) or ""
    if home.partition(".")[0] in ("torch", "_operator", "operator", "builtins", "math"):
        return _plain(target.__name__)
    return ""


def _plain(name: str) -> str:
    """A name without the underscore of its form in place."""
    return name[:-1] if name.endswith("_") and not name.endswith("__") else name


def _attribute(flow: Flow, node: fx.Node, meta: Any) -> Any:
    path = str(node.target)
    if not isinstance(meta, TensorMeta):
        return meta
    written = any(node in nodes for nodes in flow.captured.mutated.values())
    if path not in flow.tensors or written:
        return flow.opaque(meta.shape, f"'{path}' is written to" if written else f"'{path}' is no parameter or buffer")
    return flow.leaf(path, uses=len(node.users))


def _apply_writes(flow: Flow, node: fx.Node) -> None:
    """After a write in place, later readers of the written tensor see the result; of its views nothing is known."""
    result = flow.values[node]

    def written(value: Value) -> Value:
        flow.pin(value, "it is written to through a view")
        return flow.opaque(value.shape, "it is written to through a view")

    for other in flow.captured.mutated.get(node, ()):
        value = flow.values[other]
        same = other in node.args[:1] and isinstance(result, Value) and isinstance(value, Value)
        if same and result.shape == value.shape:
            flow.values[other] = result
        else:
            flow.values[other] = pytree.tree_map_only(Value, written, value)
