"""What a forward does with each weight: which modules it calls, and which operations the weights reach.

Three sources, the first that applies: a probe forward on example inputs, which sees every operation; a torch.fx trace,
which needs no inputs; or nothing, and then every question is answered with "unknown". All of them look at a hollow
copy in which only the Parameters are the model's own, and leave the random state where it was.
"""

from __future__ import annotations

import warnings
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode, resolve_name
from torch.utils._pytree import tree_leaves

from bensemble.batches import call
from bensemble.errors import InvalidValueError

from .copying import hollow_copy

__all__ = ["Analysis", "analyse"]

#: Operations that are linear in a weight, by function name.
LINEAR_OPERATIONS = frozenset(
    [
        *("linear", "bilinear", "mul", "multiply", "__mul__", "__rmul__"),
        *("conv1d", "conv2d", "conv3d", "conv_transpose1d", "conv_transpose2d", "conv_transpose3d", "convolution"),
        *("matmul", "__matmul__", "__rmatmul__", "mm", "bmm", "mv", "dot", "inner", "tensordot", "einsum"),
        *("addmm", "addbmm", "baddbmm", "addmv", "grouped_mm", "_grouped_mm"),
        *("multi_head_attention_forward", "scaled_dot_product_attention"),
        *("_native_multi_head_attention", "_transformer_encoder_layer_fwd"),
        *("lstm", "gru", "rnn_tanh", "rnn_relu", "lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell"),
    ]
)


@dataclass
class Analysis:
    """What is known about a model's forward.

    Attributes:
        source: "probe", "fx" or "unknown".
        calls: How often the forward calls each module, by path.
        inside: Modules that run within a fused module: path -> path of the module that uses their weights.
        operations: By identity of a Parameter, the names of the operations it reaches outside of called layers.
    """

    source: str = "unknown"
    calls: Counter[str] = field(default_factory=Counter)
    inside: dict[str, str] = field(default_factory=dict)
    operations: dict[int, set[str]] = field(default_factory=dict)

    @property
    def known(self) -> bool:
        """Whether a forward was seen."""
        return self.source != "unknown"

    def add_operation(self, parameter: int, name: str) -> None:
        """Record that an operation consumes a Parameter."""
        self.operations.setdefault(parameter, set()).add(name)


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
    """Keep the random state of every device, gradients and warnings out of it."""
    with torch.random.fork_rng(), torch.no_grad(), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield


def _uncalled(model: nn.Module, analysis: Analysis) -> bool:
    return any(
        module._parameters and path not in analysis.calls and path not in analysis.inside
        for path, module in model.named_modules()
    )


# -- torch.fx


def _trace(model: nn.Module, analysis: Analysis, flip: bool = False) -> bool:
    """Add what torch.fx sees to the analysis; False when it cannot trace the model."""
    hollow = hollow_copy(model)
    if hollow is None:
        return False
    for module in hollow.modules():
        module._forward_hooks.clear()
        module._forward_pre_hooks.clear()
        module.training = module.training != flip
    tracer = fx.Tracer()
    try:
        graph = tracer.trace(hollow)
    except Exception:
        return False
    analysis.source = "fx"
    derived: dict[fx.Node, set[int]] = {}
    for node in graph.nodes:
        if node.op == "call_module":
            _record_call(hollow, str(node.target), analysis)
        elif node.op == "get_attr":
            tensor = _attribute(hollow, str(node.target))
            if isinstance(tensor, Tensor):
                derived[node] = {id(tensor)} if isinstance(tensor, nn.Parameter) else set()
        elif node.op in ("call_function", "call_method"):
            name = node.target if isinstance(node.target, str) else getattr(node.target, "__name__", str(node.target))
            weights = {w for source in node.all_input_nodes for w in derived.get(source, ())}
            if node.all_input_nodes and all(source in derived for source in node.all_input_nodes):
                derived[node] = weights
            else:
                for weight in weights:
                    analysis.add_operation(weight, name)
    return True


def _record_call(model: nn.Module, path: str, analysis: Analysis) -> None:
    """A leaf of the trace was called, and whatever lies below it runs inside."""
    analysis.calls[path] += 1
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
    hollow = hollow_copy(model)
    if hollow is None:
        return Analysis()
    for training in (False, True):
        hollow.train(training)
        calls: Counter[str] = Counter()
        handles = [module.register_forward_pre_hook(_counter(calls, path)) for path, module in hollow.named_modules()]
        try:
            with _Recorder(hollow, analysis):
                call(hollow, inputs)
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
    return analysis


def _counter(calls: Counter[str], path: str) -> Any:
    def count(module: nn.Module, args: Any) -> None:
        calls[path] += 1

    return count


class _Recorder(TorchFunctionMode):
    """Notes which operations consume a Parameter, directly or through operations on weights alone."""

    def __init__(self, model: nn.Module, analysis: Analysis) -> None:
        super().__init__()
        self.analysis = analysis
        self.derived: dict[int, set[int]] = {id(p): {id(p)} for p in model.parameters()}
        self.derived |= {id(b): set() for b in model.buffers()}
        self.alive: list[Tensor] = []  # identities stay valid while the tensors live

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        operands = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        weights = {w for operand in operands for w in self.derived.get(id(operand), ())}
        if not weights:
            return result
        if all(id(operand) in self.derived for operand in operands):
            for leaf in tree_leaves(result):
                if isinstance(leaf, Tensor) and id(leaf) not in self.derived:
                    self.derived[id(leaf)] = weights
                    self.alive.append(leaf)
        else:
            name = (resolve_name(func) or getattr(func, "__name__", "")).rpartition(".")[2]
            for weight in weights:
                self.analysis.add_operation(weight, name)
        return result
