"""What a forward does with each weight: which modules it calls, and which operations the weights reach.

Three sources, the first that applies: a probe forward on example inputs, which sees every operation; a torch.fx trace,
which needs no inputs; or nothing, and then every question is answered with "unknown". The probe runs on a copy, the
trace on a hollow one in which only the Parameters are the model's own; both leave the random state where it was.
"""

from __future__ import annotations

import random
import re
import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode, resolve_name

from bensemble.errors import InvalidValueError
from bensemble.layers.linear_in_weights import LinearOpLayer
from bensemble.layers.weights import PosteriorModule
from bensemble.models.batches import call
from bensemble.torch_internals import OpOverload, clear_forward_hooks, pytree

from .copying import hollow_copy, traced_copy
from .trails import TrailRecord, data_arguments, plain_name

__all__ = ["Analysis", "analyse"]


@dataclass
class Analysis:
    """What is known about a model's forward.

    Attributes:
        source: "probe", "fx" or "unknown".
        calls: How often the forward calls each module, by path.
        inside: Modules that run within a fused module: path -> path of the module that uses their weights.
        operations: By identity of a Parameter, the names of the operations where it meets data, outside of what
            torch.fx calls as a whole.
        seen: Identities of the Parameters that the forward reads.
        altered: Identities of the Parameters that are computed with before they meet data.
        written: Identities of the Parameters that the forward writes into.
    """

    source: str = "unknown"
    calls: Counter[str] = field(default_factory=Counter)
    inside: dict[str, str] = field(default_factory=dict)
    operations: dict[int, set[str]] = field(default_factory=dict)
    seen: set[int] = field(default_factory=set)
    altered: set[int] = field(default_factory=set)
    written: set[int] = field(default_factory=set)

    @property
    def known(self) -> bool:
        """Whether a forward was seen."""
        return self.source != "unknown"


def analyse(verb: str, model: nn.Module, example_inputs: Any = None) -> Analysis:
    """See what a forward of the model does.

    Raises:
        InvalidValueError: the model rejects the example inputs.
    """
    with _undisturbed():
        if example_inputs is not None:
            return _probe(verb, model, example_inputs)
        analysis = Analysis()
        if _trace(model, analysis) and _uncalled(model, analysis):
            # Some heads run in training only, or in evaluation only.
            _trace(model, analysis, flip=True)
        return analysis


@contextmanager
def _undisturbed() -> Iterator[None]:
    """Keep the random state of every device and of Python, gradients and warnings out of it."""
    state = random.getstate()
    try:
        with torch.random.fork_rng(), torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        random.setstate(state)


def _uncalled(model: nn.Module, analysis: Analysis) -> bool:
    return any(
        id(parameter) not in analysis.seen and path not in analysis.calls and path not in analysis.inside
        for path, module in model.named_modules()
        for parameter in module.parameters(recurse=False)
    )


# -- torch.fx


def _trace(model: nn.Module, analysis: Analysis, flip: bool = False) -> bool:
    """Add what torch.fx sees to the analysis; False when it cannot trace the model."""
    hollow = hollow_copy(model)
    if hollow is None:
        return False
    for module in hollow.modules():
        clear_forward_hooks(module)
        module.training = module.training != flip
    tracer = _Tracer()
    try:
        graph = tracer.trace(hollow)
    except Exception:
        return False
    analysis.source = "fx"
    trails, calls = TrailRecord(analysis.operations, analysis.altered), Counter[str]()
    for node in graph.nodes:
        if node.op == "call_module":
            calls[str(node.target)] += 1
            _record_inside(hollow, str(node.target), analysis)
        if node.op == "call_method" and _writes(str(node.target)):
            analysis.written |= _parameter_behind(node.args[0], hollow)
        if node.op == "get_attr":
            tensor = _attribute(hollow, str(node.target))
            trails.start(node, id(tensor) if isinstance(tensor, nn.Parameter) else None)
            analysis.seen.add(id(tensor))
        elif _is_size(node, trails):
            trails.start(node)
        elif any(trails.knows(source) for source in node.all_input_nodes):
            name, data = _operation(node, hollow)
            trails.apply(name, list(node.all_input_nodes), data, [node])
    analysis.calls |= calls
    return True


def _parameter_behind(node: Any, model: nn.Module) -> set[int]:
    """The identity of the Parameter that a node stands for, itself or through ``.data``."""
    while isinstance(node, fx.Node) and node.target is getattr and node.args[1] == "data":
        node = node.args[0]
    if not isinstance(node, fx.Node) or node.op != "get_attr":
        return set()
    tensor = _attribute(model, str(node.target))
    return {id(tensor)} if isinstance(tensor, nn.Parameter) else set()


def _is_size(node: fx.Node, trails: TrailRecord) -> bool:
    """Whether a node gives a shape, dtype or device, which is neither weight nor data."""
    if node.op == "call_method":
        return node.target in ("size", "dim", "numel", "stride", "ndimension", "element_size")
    return (
        node.op == "call_function" and node.target is getattr and node.args[1] in ("shape", "dtype", "device", "ndim")
    )


def _operation(node: fx.Node, model: nn.Module) -> tuple[str, list[fx.Node]]:
    """The plain name of what a node does, and those of its inputs that it takes as data."""
    if node.op == "call_module":
        module = model.get_submodule(str(node.target))
        stateless = not any(True for _ in module.parameters())
        return type(module).__name__, [] if stateless else list(node.all_input_nodes)
    name = _name_of(node.target)
    data = pytree.tree_leaves(data_arguments(name, node.args, node.kwargs))
    return name, [leaf for leaf in data if isinstance(leaf, fx.Node)]


class _Tracer(fx.Tracer):
    """Calls the twins of torch.nn modules as a whole, as torch.fx does with torch.nn itself."""

    def is_leaf_module(self, m: nn.Module, module_qualified_name: str) -> bool:
        kind = m.deterministic_class if isinstance(m, PosteriorModule) else None
        known = kind is not None and (isinstance(m, LinearOpLayer) or kind.__module__.startswith("torch.nn"))
        return known or super().is_leaf_module(m, module_qualified_name)


def _record_inside(model: nn.Module, path: str, analysis: Analysis) -> None:
    """A leaf of the trace was called, and whatever lies below it runs inside."""
    for below, _ in model.get_submodule(path).named_modules():
        if below:
            analysis.inside.setdefault(f"{path}.{below}", path)


def _attribute(model: nn.Module, target: str) -> Any:
    value: Any = model
    for part in target.split("."):
        value = getattr(value, part, None)
    return value


# -- a probe forward


def _probe(verb: str, model: nn.Module, inputs: Any) -> Analysis:
    """What one forward on real inputs does, in evaluation mode, and in training mode for what evaluation leaves out."""
    analysis = Analysis(source="probe")
    copied = traced_copy(model)
    if copied is None:
        return Analysis()
    probed, originals = copied
    for training in (False, True):
        probed.train(training)
        calls: Counter[str] = Counter()
        handles = [
            module.register_forward_pre_hook(_counter(calls, path))
            for path, module in probed.named_modules()
            if not isinstance(module, torch.jit.ScriptModule)  # takes no hooks, and is not converted
        ]
        try:
            with _Recorder(probed, originals, analysis):
                call(probed, inputs)
        except Exception as err:
            if not training:
                raise InvalidValueError(
                    f"{verb}: the model rejects example_inputs ({type(err).__name__}: {err}); "
                    "pass what its forward takes: a tensor, a tuple of arguments, or a mapping of keyword arguments."
                ) from err
        finally:
            for handle in handles:
                handle.remove()
        analysis.calls |= calls
        if not _uncalled(model, analysis):
            break
    analysis.written |= _changed(model, probed, originals)
    return analysis


def _changed(model: nn.Module, probed: nn.Module, originals: dict[int, int]) -> set[int]:
    """Identities of the Parameters whose copies hold other values since the probe."""
    before = {id(parameter): parameter for parameter in model.parameters()}
    pairs = ((copied, before[originals[id(copied)]]) for copied in probed.parameters() if id(copied) in originals)
    return {id(p) for copied, p in pairs if not p.is_meta and not _same(copied, p)}


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and (torch.equal(one, other) or torch.equal(one.nan_to_num(), other.nan_to_num()))


def _counter(calls: Counter[str], path: str) -> Any:
    def count(module: nn.Module, args: Any) -> None:
        calls[path] += 1

    return count


class _Recorder(TorchFunctionMode):
    """Follows Parameters through every operation that torch runs."""

    def __init__(self, model: nn.Module, originals: dict[int, int], analysis: Analysis) -> None:
        super().__init__()
        self.originals = originals
        self.analysis = analysis
        self.trails = TrailRecord(analysis.operations, analysis.altered)
        self.alive: list[Tensor] = []  # identities stay valid while the tensors live
        for parameter, original in originals.items():
            self.trails.start(parameter, original)
        for buffer in model.buffers():
            self.trails.start(id(buffer))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        operands = _tensors((args, kwargs))
        results = _tensors(result)
        if results and any(self.trails.knows(id(operand)) for operand in operands):
            self.analysis.seen |= {self.originals[id(o)] for o in operands if id(o) in self.originals}
            if _writes(getattr(func, "__name__", "")):
                self.analysis.written |= {self.originals[id(r)] for r in results if id(r) in self.originals}
            name = _name_of(func)
            data = _tensors(data_arguments(name, args, kwargs))
            self.trails.apply(name, [id(o) for o in operands], [id(d) for d in data], [id(r) for r in results])
            self.alive += [r for r in results if self.trails.knows(id(r))]
        return result


def _writes(name: str) -> bool:
    """Whether a method of this name changes its tensor."""
    if name.endswith("__"):
        return re.fullmatch("__i(add|sub|mul|truediv|div|pow)__", name) is not None
    return name.endswith("_") and name not in ("requires_grad_", "detach_", "share_memory_")


def _name_of(operation: Any) -> str:
    """The plain name of a function, a method, or the name of a method."""
    if isinstance(operation, OpOverload):
        return plain_name(operation.overloadpacket.__name__)
    name = operation if isinstance(operation, str) else resolve_name(operation) or getattr(operation, "__name__", "")
    return plain_name(name.rpartition(".")[2])


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]
