"""A model as a graph whose every operation is visible, with what one run on example inputs shows about it.

``torch.fx`` first, because its graphs keep the modules and run at any size; where it cannot trace the model,
``torch.export``. Both look at a hollow copy in evaluation mode: modules are copied, Parameters are the model's own.
"""

from __future__ import annotations

import inspect
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn
from torch.export import Dim, export

from bensemble.errors import one_line, raising_line
from bensemble.models.outputs import tensor_paths
from bensemble.models.undisturbed import undisturbed
from bensemble.torch_internals import clear_forward_hooks, flat_inputs, has_forward_hooks, pytree, storage_key, version

__all__ = [
    "SOURCES",
    "Capture",
    "CaptureError",
    "Source",
    "TensorMeta",
    "capture",
    "coarsest_precision",
    "left_to_right",
    "outputs_agree",
]

#: The tracers, in the order in which they are tried.
Source = Literal["fx", "export"]
SOURCES: tuple[Source, ...] = ("fx", "export")

#: Input axes that an exported graph leaves open: none, the batch and all axes of integer inputs, or all.
DynamicAxes = Literal["none", "batch", "all"]


class CaptureError(Exception):
    """A tracer cannot express the model; the message says why."""


@dataclass(frozen=True)
class TensorMeta:
    """Shape and dtype of a tensor in the example run."""

    shape: tuple[int, ...]
    dtype: torch.dtype


@dataclass
class Capture:
    """A model's forward as a graph.

    Attributes:
        module: Runs the graph. Its submodules and tensors have the paths of the model's own.
        source: The tracer.
        metas: What each node returned in the example run: tensors as ``TensorMeta``, other values as they are.
        unchanged: Nodes that returned one of their arguments untouched, such as dropout in evaluation.
        mutated: For nodes that write into a tensor in place, the nodes whose later readers see the new content.
        hooked: Paths of modules whose hooks run at every call.
    """

    module: fx.GraphModule
    source: Source
    metas: dict[fx.Node, Any] = field(default_factory=dict)
    unchanged: dict[fx.Node, fx.Node] = field(default_factory=dict)
    mutated: dict[fx.Node, list[fx.Node]] = field(default_factory=dict)
    hooked: frozenset[str] = frozenset()


def capture(source: Source, model: nn.Module, inputs: Any, reference: Any, dynamic: DynamicAxes = "none") -> Capture:
    """The model's graph from one of the tracers, run once and checked against the model's own output.

    Args:
        source: The tracer. Graphs of fx run at any size.
        model: A hollow copy in evaluation mode. It loses its hooks.
        inputs: Example inputs, as :func:`bensemble.models.batches.call` takes them.
        reference: The model's output for them.
        dynamic: Which input axes an exported graph leaves open; more take longer.

    Raises:
        CaptureError: the tracer fails, or its graph computes something else.
    """
    hooked = frozenset(path for path, module in model.named_modules() if has_forward_hooks(module))
    for path in hooked:
        clear_forward_hooks(model.get_submodule(path))
    args, kwargs = _arguments(inputs)
    try:
        with left_to_right(), undisturbed(model):
            module = _trace(model, args, kwargs) if source == "fx" else _export(model, args, kwargs, dynamic)
    except Exception as err:
        line = raising_line(err)
        at = f" at {line}" if line else ""
        raise CaptureError(f"torch.{source} cannot trace it{at} ({one_line(err)})") from err
    captured = Capture(module, source, hooked=hooked)
    try:
        with undisturbed(model):
            output = _Observer(captured).run_on(args, kwargs)
    except Exception as err:
        raise CaptureError(f"the torch.{source} graph does not run ({one_line(err)})") from err
    if not outputs_agree(output, reference, coarsest_precision(model)):
        names = ", ".join(f"'{path}'" if path else "the model itself" for path in sorted(hooked)[:3])
        hooks = f" without the hooks of {names}; put what they do into a forward" if hooked else ""
        raise CaptureError(f"the torch.{source} graph computes something else{hooks}")
    return captured


#: Units of the coarsest precision that rounding may cost. In float32 a thousand; in half precision that would be all.
_ROUNDINGS = {torch.float16: 16, torch.bfloat16: 16}


def outputs_agree(found: Any, expected: Any, coarsest: torch.dtype = torch.float32) -> bool:
    """Whether two outputs hold the same tensors up to rounding: 1e-4 of the largest value in float32.

    Args:
        found: The one output.
        expected: The other output.
        coarsest: The lowest precision inside the network, which its outputs need not show.
    """
    ours, theirs = [t for _, t in tensor_paths(found)], [t for _, t in tensor_paths(expected)]
    if len(ours) != len(theirs):
        return False
    return all(_agree(a, b, coarsest) for a, b in zip(ours, theirs, strict=True))


def coarsest_precision(model: nn.Module) -> torch.dtype:
    """The dtype of the coarsest weights or buffers of a model; float32 where none is coarser."""
    dtypes = {tensor.dtype for tensor in (*model.parameters(), *model.buffers()) if tensor.is_floating_point()}
    return max(dtypes | {torch.float32}, key=lambda dtype: torch.finfo(dtype).eps)


def _agree(a: Tensor, b: Tensor, coarsest: torch.dtype) -> bool:
    if a.shape != b.shape or a.dtype != b.dtype or not torch.equal(a.isfinite(), b.isfinite()):
        return False
    if not a.is_floating_point():
        return torch.equal(a, b)
    precision = max((torch.float32, coarsest, b.dtype), key=lambda dtype: torch.finfo(dtype).eps)
    tolerance = _ROUNDINGS.get(precision, 1e3) * torch.finfo(precision).eps
    found, expected = a[b.isfinite()].double(), b[b.isfinite()].double()
    if not expected.numel():
        return True
    return bool((found - expected).abs().max() <= tolerance * expected.abs().max() + torch.finfo(b.dtype).tiny)


# -- the tracers


def left_to_right() -> AbstractContextManager[None]:
    """Keep opt_einsum, where it is installed, from choosing the order of three and more operands.

    It computes with the sizes of the operands as plain numbers, and so torch.export takes them all, the batch as well,
    for sizes that never change.
    """
    opt_einsum = torch.backends.opt_einsum
    return opt_einsum.flags(enabled=False) if opt_einsum.enabled else nullcontext()  # torch cannot restore "off"


class _Tracer(fx.Tracer):
    """Sees buffers as well as Parameters."""

    proxy_buffer_attributes = True


def _trace(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> fx.GraphModule:
    """Symbolic trace; arguments that are not tensors keep the values that they have in the example."""
    signature = inspect.signature(model.forward)
    bound = signature.bind(*args, **kwargs)
    given = {name for name, value in bound.arguments.items() if isinstance(value, Tensor)}
    bound.apply_defaults()
    fixed = {name: value for name, value in bound.arguments.items() if name not in given}
    if any(isinstance(leaf, Tensor) for leaf in pytree.tree_leaves(fixed)):
        raise CaptureError("an argument is a container of tensors")
    graph = _Tracer().trace(model, concrete_args=fixed or None)
    return fx.GraphModule(model, graph, type(model).__name__)


def _export(model: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], dynamic: DynamicAxes) -> fx.GraphModule:
    """Export with the given axes dynamic where the model allows it."""
    if dynamic == "none":
        return export(model, args, kwargs).module(check_guards=False)

    def axes(leaf: Any) -> dict[int, Any] | None:
        if not isinstance(leaf, Tensor):
            return None
        open_axes = leaf.ndim if dynamic == "all" or not leaf.is_floating_point() else min(leaf.ndim, 1)
        return {axis: Dim.AUTO if axis < open_axes else Dim.STATIC for axis in range(leaf.ndim)}

    by_position, by_name = pytree.tree_map(axes, (args, kwargs))
    names = inspect.signature(model.forward).parameters
    shapes = {**dict(zip(names, by_position, strict=False)), **by_name} if kwargs else by_position
    return export(model, args, kwargs, dynamic_shapes=shapes).module(check_guards=False)


# -- what a run shows


class _Observer(fx.Interpreter):
    """Runs a graph and notes shapes, untouched arguments and writes in place."""

    def __init__(self, captured: Capture) -> None:
        super().__init__(captured.module)
        self.captured = captured

    def run_on(self, args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
        """The output of the graph."""
        if self.captured.source == "export":
            leaves = flat_inputs(self.captured.module, args, kwargs)
            return self.run(*leaves, enable_io_processing=False)
        bound = inspect.signature(self.captured.module.forward).bind(*args, **kwargs)
        bound.apply_defaults()
        return self.run(*bound.arguments.values(), enable_io_processing=False)

    def run_node(self, node: fx.Node) -> Any:
        """Run one node and note what it did."""
        before = {source: self._tensors(source) for source in node.all_input_nodes}
        versions = [(tensor, version(tensor)) for tensors in before.values() for tensor in tensors]
        result = super().run_node(node)
        captured = self.captured
        captured.metas[node] = pytree.tree_map_only(
            Tensor, lambda tensor: TensorMeta(tuple(tensor.shape), tensor.dtype), result
        )
        written = {storage_key(tensor) for tensor, before_it in versions if version(tensor) != before_it}
        if written:
            captured.mutated[node] = [
                other for other in self.env if any(storage_key(tensor) in written for tensor in self._tensors(other))
            ]
        elif isinstance(result, Tensor) and node.op != "output":
            same = [source for source in before if self.env.get(source) is result]
            if same:
                captured.unchanged[node] = same[0]
        return result

    def _tensors(self, node: fx.Node) -> list[Tensor]:
        return [leaf for leaf in pytree.tree_leaves(self.env.get(node)) if isinstance(leaf, Tensor)]


def _arguments(inputs: Any) -> tuple[tuple[Any, ...], dict[str, Any]]:
    if isinstance(inputs, Mapping):
        return (), dict(inputs)
    return (inputs if isinstance(inputs, tuple) else (inputs,)), {}
