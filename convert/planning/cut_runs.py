"""Runs of a copy of a model in which the outputs of its layers are cut off, or replaced by other values.

Where a layer's output is cut off, autograd records what comes after it and nothing else. So the graph behind a model's
output shows what lies between the last layers and the output: torch's operations, the modules that ran them, and the
Parameters that a function reads. This needs no trace, so it works on every module that runs.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from bensemble.layers.linear_in_weights import LinearOpLayer
from bensemble.layers.registry import bayesian_type
from bensemble.models.batches import Inputs, call
from bensemble.models.outputs import OutputSelector, select_output, tensor_paths
from bensemble.torch_internals import ConvBase, pytree

from .weight_paths import operation_name

__all__ = ["LINKS", "Survey", "Trials"]

#: Functions that turn logits into probabilities or their logarithms, by the plain names of torch's functions.
LINKS = {"softmax": "softmax", "log_softmax": "log_softmax", "sigmoid": "sigmoid", "expit": "sigmoid",
         "logsigmoid": "log_sigmoid"}  # fmt: skip
_CUT, _MODULE = "bensemble.cut", "bensemble.module"


@dataclass
class Survey:
    """What lies between the last layers and the output.

    Attributes:
        output: The model's main output, with its graph.
        calls: How often the forward calls each layer, by path.
        layers: Paths of the layers whose outputs reach the output through no other layer; once for each call.
        leaves: What stands for the outputs of these layers in the graph.
        parameters: Names of the Parameters that reach the output without a call of a layer.
        weights: Those of them that have two or more dimensions.
        steps: The operations in between, from the output backwards, each with the path of its module where known.
    """

    output: Tensor
    calls: Counter[str]
    layers: list[str] = field(default_factory=list)
    leaves: list[Tensor] = field(default_factory=list)
    parameters: list[str] = field(default_factory=list)
    weights: list[str] = field(default_factory=list)
    steps: list[tuple[str, str | None]] = field(default_factory=list)


class Trials:
    """Runs of a model on the same inputs.

    Args:
        model: A copy of the user's model, in evaluation mode.
        inputs: Its example inputs.
        output: Which output is the main one; default as in :func:`main_output`.
    """

    def __init__(self, model: nn.Module, inputs: Inputs, output: OutputSelector | None = None) -> None:
        self.model, self.inputs, self.selector = model, inputs, output
        scripted = torch.jit.ScriptModule  # takes no hooks, and is not converted
        self.modules = {path: m for path, m in model.named_modules() if not isinstance(m, scripted)}
        self.layers = {path: module for path, module in self.modules.items() if _is_layer(module)}

    def survey(self) -> Survey:
        """Cut off the output of every layer, and read the graph that is left."""
        calls: Counter[str] = Counter()

        def cut(path: str, output: Tensor) -> Tensor:
            calls[path] += 1
            return _cut(path, output)

        with self._hooked(self.layers, cut, label=True):
            output = self._run(requires_grad=True)
        survey = Survey(output, calls)
        _read_graph(output, {id(p): name for name, p in self.model.named_parameters()}, survey)
        return survey

    def runs(self) -> bool:
        """Whether the model takes the inputs when nothing is cut off."""
        try:
            self._run(requires_grad=False)
        except Exception:
            return False
        return True

    def replaced(
        self, path: str, change: Callable[[Tensor], Tensor] = torch.clone, without_links: bool = False
    ) -> tuple[Tensor, Tensor]:
        """The output when one layer's output is another, and the leaf that stands for the latter in the graph.

        Args:
            path: The layer.
            change: Makes the new output of the layer from the old one.
            without_links: Leave out every softmax and sigmoid behind the layer.
        """
        leaves: list[Tensor] = []

        def replace(_: str, output: Tensor) -> Tensor:
            cut = _cut(path, change(output.detach()))
            leaves.append(_leaf_of(cut.grad_fn))
            return cut

        with self._hooked({path: self.layers[path]}, replace), _WithoutLinks(without_links):
            return self._run(requires_grad=False), leaves[-1]

    def _run(self, requires_grad: bool) -> Tensor:
        for parameter in self.model.parameters():
            if parameter.is_floating_point():
                parameter.requires_grad_(requires_grad)
        # What torch.compile runs cannot be watched.
        with torch.enable_grad(), torch.compiler.set_stance("force_eager"):
            return main_output(call(self.model, _copied(self.inputs)), self.selector)

    @contextmanager
    def _hooked(
        self, layers: dict[str, nn.Module], change: Callable[[str, Tensor], Tensor], label: bool = False
    ) -> Iterator[None]:
        """Hooks that change the outputs of layers, before hooks of the user's see them, and label what modules did."""
        handles = [m.register_forward_hook(_changing(path, change), prepend=True) for path, m in layers.items()]
        if label:
            handles += [m.register_forward_hook(_labelling(p)) for p, m in self.modules.items() if p not in layers]
        try:
            yield
        finally:
            for handle in handles:
                handle.remove()


def main_output(output: Any, selector: OutputSelector | None = None) -> Tensor:
    """What ``selector`` names; by default the entry ``logits`` or ``out``, or else the first floating tensor."""
    floating = [tensor for _, tensor in tensor_paths(output) if tensor.is_floating_point()]
    try:
        return select_output(output, selector)
    except ValueError:
        if selector is not None or not floating:
            raise
    return floating[0]


def _copied(inputs: Inputs) -> Inputs:
    """Inputs of their own for each run: a forward may write into them, and autograd takes no inference tensors."""
    whole = dict(inputs) if isinstance(inputs, Mapping) else inputs
    return pytree.tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, whole)


class _WithoutLinks(TorchFunctionMode):
    """Softmax and sigmoid return what they get, where that comes from a leaf."""

    def __init__(self, active: bool) -> None:
        super().__init__()
        self.active = active

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if self.active and operation_name(func) in LINKS:
            data = args[0] if args else kwargs.get("input")
            if isinstance(data, Tensor) and data.requires_grad:
                return data if kwargs.get("dtype") is None else data.to(kwargs["dtype"])
        return func(*args, **kwargs)


def _is_layer(module: nn.Module) -> bool:
    return isinstance(module, (nn.Linear, ConvBase, LinearOpLayer)) or bayesian_type(type(module)) is not None


def _cut(path: str, output: Tensor) -> Tensor:
    """The output with a new history: a leaf and, as a model may write into it in place, a copy of that."""
    cut = output.detach().requires_grad_().clone()
    if cut.grad_fn is not None:  # none where the model's own forward runs without gradients
        _metadata(cut.grad_fn)[_CUT] = path
    return cut


def _changing(path: str, change: Callable[[str, Tensor], Tensor]) -> Any:
    def hook(module: nn.Module, args: Any, output: Any) -> Any:
        return change(path, output) if isinstance(output, Tensor) and output.is_floating_point() else None

    return hook


def _labelling(path: str) -> Any:
    def hook(module: nn.Module, args: Any, output: Any) -> None:
        for _, tensor in tensor_paths(output):
            if tensor.grad_fn is not None:
                _metadata(tensor.grad_fn).setdefault(_MODULE, path)  # the innermost module comes first

    return hook


def _metadata(node: Any) -> dict[Any, Any]:
    """The dictionary that every node of a graph has for its users (torch declares it as a method)."""
    metadata: dict[Any, Any] = node.metadata
    return metadata


def _leaf_of(cut: Any) -> Tensor:
    leaf: Tensor = cut.next_functions[0][0].variable
    return leaf


def _read_graph(output: Tensor, names: dict[int, str], survey: Survey) -> None:
    """Go backwards from the output to the cuts and to the Parameters."""
    waiting, seen = [output.grad_fn], {None}
    while waiting:
        node: Any = waiting.pop()
        if node in seen:
            continue
        seen.add(node)
        if _CUT in _metadata(node):
            survey.layers.append(_metadata(node)[_CUT])
            survey.leaves.append(_leaf_of(node))
        elif hasattr(node, "variable"):
            if id(node.variable) in names:
                survey.parameters.append(names[id(node.variable)])
                survey.weights += survey.parameters[-1:] if node.variable.dim() > 1 else []
        else:
            survey.steps.append((node.name(), _metadata(node).get(_MODULE)))
            waiting += [following for following, _ in node.next_functions]
