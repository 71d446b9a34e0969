"""``moments``: the graph of a Bayesian model with every operation on an uncertain activation replaced by its rule."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, fx, nn
from torch.fx._pytree import tree_flatten_spec
from torch.utils._pytree import tree_leaves, tree_map

from bensemble.checks import check_module
from bensemble.errors import ConversionError, InvalidTypeError, InvalidValueError
from bensemble.layers.weights import PosteriorWeights
from bensemble.models.batches import call
from bensemble.models.outputs import OutputSelector, select_output

from ...surgery.converting import to_deterministic
from ..capture import Capture, CaptureError, capture, first_line, undisturbed
from .network import MomentNetwork
from .points import record_points
from .recording import Recorder
from .registry import CannotFollowError, Operation
from .reordering import pool_first
from .rules import RULES
from .rules.normalisation import with_norm
from .state import Uncertain, Weight

__all__ = ["moments"]

CURE = "predict by weight samples"


def moments(bnn: nn.Module, example_inputs: Any, *, output: OutputSelector | None = None) -> MomentNetwork:
    """A module that gives mean and variance of a Bayesian model's output in one pass, without random numbers.

    It is a snapshot of the posterior in evaluation mode, with squared sigmas computed once: make it anew after
    training. ``bensemble.predict`` takes it in place of the model, ``torch.export`` and ONNX take it as any module.
    How the moments are computed, and where they are exact, is written in ``docs/moments.md``.

    Args:
        bnn: A Bayesian model. It is left untouched, as is the random state.
        example_inputs: What its forward takes: a tensor, a tuple of arguments, or a mapping of keyword arguments. The
            values do not matter, the sizes other than the batch do.
        output: Which part of a structured output: a key, an index or a callable.

    Returns:
        A module whose forward takes the model's inputs and returns ``(mean, variance)``.

    Raises:
        ConversionError: The model has no posterior, cannot be exported, or holds an operation whose moments have no
            closed form here; the error names it and the module that calls it.
        InvalidValueError: The model rejects the example inputs, or ``output`` does not fit.

    Example:
        >>> sure = moments(bnn, x[:2])
        >>> mean, variance = sure(x)
        >>> p = bensemble.predict(sure, x, likelihood="categorical")
    """
    check_module("moments", bnn)
    variances = _variances(bnn)
    with torch.inference_mode(False), undisturbed():
        twin = to_deterministic(bnn).eval()
        inputs = _several(example_inputs)
        reference = _reference(twin, inputs)
        place = _place(reference, output)
        try:
            captured = capture("export", twin, inputs, reference, "batch")
        except CaptureError as err:
            raise ConversionError(f"moments: {type(bnn).__name__} must be exportable, got: {err}; {CURE}.") from err
        pool_first(captured.module.graph)
        builder = _Builder(captured, variances)
        example = builder.run_on(inputs)[place]
        if not isinstance(example, Uncertain):
            raise ConversionError(
                f"moments: the output of {type(bnn).__name__} must depend on an uncertain weight, got one that does "
                "not; select another with output=."
            )
        parts, spread, num_points = record_points(example)
    return MomentNetwork(builder.recorder.module(parts), spread, captured.module._in_spec, num_points).eval()


def _variances(bnn: nn.Module) -> dict[str, Tensor]:
    """Variance of each uncertain weight by every name that it has in the deterministic model."""
    found: dict[str, Tensor] = {}
    known: dict[int, Tensor] = {}
    for path, module in bnn.named_modules():
        for posterior in module._posteriors() if isinstance(module, PosteriorWeights) else ():
            key = id(posterior.mu)
            if key not in known:
                known[key] = posterior.variance().detach().to(posterior.mu.dtype)
            found[f"{path}.{posterior.name}".lstrip(".")] = known[key]
    if not found:
        raise ConversionError(
            f"moments: model must be Bayesian, got {type(bnn).__name__} without a posterior; bayesify it first."
        )
    return found


def _several(inputs: Any) -> Any:
    """The example as ordinary tensors, two examples at least: export takes a batch of one for a size that stays."""

    def twice(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor):
            return leaf
        return torch.cat([leaf, leaf]) if leaf.ndim and leaf.shape[0] == 1 else leaf.clone()

    return tree_map(twice, inputs)


def _reference(twin: nn.Module, inputs: Any) -> Any:
    try:
        return call(twin, inputs)
    except InvalidTypeError:
        raise
    except Exception as err:
        raise InvalidValueError(
            f"moments: the model rejects example_inputs, got {first_line(err)}; pass what its forward takes."
        ) from err


def _place(reference: Any, output: OutputSelector | None) -> int:
    """The number of the selected output among all of them."""
    selected = select_output(reference, output)
    for place, leaf in enumerate(tree_leaves(reference)):
        if leaf is selected:
            return place
    raise InvalidValueError(
        f"moments: output must select one of the model's outputs as it is, got {output!r}, which computes another."
    )


class _Builder(fx.Interpreter):
    """Runs the example through the graph, by the rules where it is uncertain, and has it written down."""

    def __init__(self, captured: Capture, variances: Mapping[str, Tensor]) -> None:
        super().__init__(captured.module)
        self.captured, self.variances = captured, variances
        self.recorder = Recorder()
        self.operations: dict[fx.Node, Operation] = {}
        self.readers: dict[Any, fx.Node] = {}
        _read_what_was_written(captured)

    def run_on(self, inputs: Any) -> list[Any]:
        """The outputs of the example, one after the other."""
        args, kwargs = ((), dict(inputs)) if isinstance(inputs, Mapping) else (inputs, {})
        args = args if isinstance(args, tuple) else (args,)
        leaves = tree_flatten_spec((list(args), kwargs), self.captured.module._in_spec)
        with self.recorder:
            found: Any = self.run(*leaves, enable_io_processing=False)
        return tree_leaves(found, is_leaf=_is_uncertain)

    def run_node(self, node: fx.Node) -> Any:
        """The value of one node: by its rule if it depends on an uncertain weight."""
        if node.op == "get_attr" and node.target in self.variances:
            tensor = super().run_node(node)
            return Weight(str(node.target), tensor.detach(), self.variances[str(node.target)])
        if node.op == "placeholder":
            return self.recorder.input(node.name, super().run_node(node))
        args, kwargs = self.fetch_args_kwargs_from_env(node)
        if node.op == "output" or not any(_is_uncertain(leaf) for leaf in tree_leaves((args, kwargs), _is_uncertain)):
            value = super().run_node(node)
            if isinstance(value, int) and self.recorder.depends((args, kwargs)):
                value = self.recorder.write(node.target, args, kwargs, value)
            return value
        try:
            self._check(node, args)
            return self._by_rule(node, Operation(_name(node), node.target, args, kwargs))  # type: ignore[arg-type]
        except CannotFollowError as err:
            raise ConversionError(
                f"moments: '{_module_path(node)}' calls {_name(node)}, which has no moments in closed form here, got "
                f"{err}; {CURE}."
            ) from err

    def _by_rule(self, node: fx.Node, operation: Operation) -> Any:
        layer = node.all_input_nodes[0]
        if operation.name == "batch_norm" and layer in self.operations and len(layer.users) == 1:
            operation = with_norm(self.operations[layer], operation) or operation
        if operation.name not in RULES:
            raise CannotFollowError("no rule for it")
        self.operations[node] = operation
        with self.recorder.pure():
            return RULES[operation.name](operation)

    def _check(self, node: fx.Node, args: Any) -> None:
        """Refuse two uses of one weight, whose noise is the same, and views of what is written in place."""
        for weight in args:
            if isinstance(weight, Weight) and weight is not args[0]:  # the first operand is the one that is moved
                reader = self.readers.setdefault(id(self.variances[weight.path]), node)
                if reader is not node:
                    raise CannotFollowError(f"'{weight.path}' for a second time: both uses share its noise")
        for other in self.captured.mutated.get(node, ()):
            if other is not node.args[0] and other is not node and _is_uncertain(self.env.get(other)):
                raise CannotFollowError("a write into a tensor that has another view")


def _read_what_was_written(captured: Capture) -> None:
    """Let those who read a tensor after a write in place read the result of the write."""
    place = {node: number for number, node in enumerate(captured.module.graph.nodes)}
    for node in captured.mutated:
        first = node.args[0] if node.args else None
        for user in list(first.users) if isinstance(first, fx.Node) else ():
            if place[user] > place[node]:
                user.replace_input_with(first, node)  # type: ignore[arg-type]


def _is_uncertain(leaf: Any) -> bool:
    return isinstance(leaf, (Uncertain, Weight))


def _name(node: fx.Node) -> str:
    """The operation's name without namespace and overload."""
    target = node.target
    if isinstance(target, torch._ops.OpOverload):
        return str(target._schema.name).split("::")[-1]
    return getattr(target, "__name__", str(target))


def _module_path(node: fx.Node) -> str:
    """The dotted path of the module whose forward calls the operation."""
    stack = node.meta.get("nn_module_stack")
    if not stack:
        return ""
    path: str = list(stack.values())[-1][0]
    return path.removeprefix("L['self'].").removeprefix("L['self']")
