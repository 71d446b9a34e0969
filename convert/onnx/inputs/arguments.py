"""The inputs and outputs of a model as flat lists of named tensors.

ONNX has tensors only. A call ``model(x, (h, c))`` becomes the inputs ``x``, ``hx_0``, ``hx_1``, after the names of
forward's arguments; other values stay as they are in the example. An output ``{"logits": a, "states": (b, c)}``
becomes ``logits``, ``states_0``, ``states_1``.
"""

from __future__ import annotations

import dataclasses
import inspect
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import onnx
import torch
from torch import Tensor, nn

from bensemble.errors import ExportError, InvalidTypeError, InvalidValueError
from bensemble.models.batches import Inputs, call, to_device
from bensemble.models.outputs import OutputSelector, describe, is_named_tuple, select_output, tensor_paths

__all__ = ["Arguments", "FlatModel", "checked_names", "read_arguments"]


@dataclass(frozen=True)
class Arguments:
    """Example inputs taken apart.

    Attributes:
        names: One name for each tensor.
        tensors: The tensors, in the order of the call.
        template: The inputs as they were given.
    """

    names: tuple[str, ...]
    tensors: tuple[Tensor, ...]
    template: Any

    def rebuild(self, tensors: Sequence[Tensor]) -> Inputs:
        """The inputs again, with other tensors in the same places."""
        return _replace(self.template, iter(tensors))


class FlatModel(nn.Module):
    """A model as ONNX sees it: tensors in, a tuple of tensors out.

    Args:
        network: The model.
        arguments: How its call is put together.
        selector: Which output to keep, see :func:`bensemble.models.outputs.select_output`; None keeps all.

    Attributes:
        name: Class of the user's model.
        count: Number of networks in the file.
        scales: For some outputs the outputs whose largest value their error is divided by; the rest: by their own.
        slack: For some outputs by how much they may differ in any case: they are steps, or may be close to 0.
        rewrites: Whether the exporter's graph goes through :meth:`rewrite` before it is optimized.
    """

    count = 1
    scales: ClassVar[Mapping[str, Sequence[str]]] = {}
    slack: Mapping[str, float]
    rewrites = False

    #: Weights of layers that stay float32 with all that follows them, where the rest is rounded to eight bits.
    heads: Sequence[Any] = ()

    def __init__(self, network: nn.Module, arguments: Arguments, selector: OutputSelector | None = None) -> None:
        super().__init__()
        self.network = network
        self.name = type(network).__name__
        self.arguments = arguments
        self.selector = selector
        self.slack = {}
        self.train(network.training)

    def forward(self, tensors: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
        """The outputs in the order of :meth:`named`; the inputs are one tuple."""
        return tuple(self.named(tensors).values())

    def named(self, tensors: Sequence[Tensor]) -> dict[str, Tensor]:
        """Every output by a readable name, or the selected one."""
        output = call(self.network, self.arguments.rebuild(tensors))
        if self.selector is not None:
            path = self.selector if isinstance(self.selector, str) else ""
            return {_readable([path])[0]: select_output(output, self.selector)}
        paths, found = [path for path, _ in tensor_paths(output)], [tensor for _, tensor in tensor_paths(output)]
        if not paths:
            raise ExportError(
                f"export_onnx: the model returns no tensor, got {describe(output)}; "
                "pass output=, a callable that finds it."
            )
        names = _readable([""] if len(paths) == 1 and paths[0].isdigit() else paths)
        return dict(zip(names, found, strict=True))

    def rewrite(self, proto: onnx.ModelProto) -> list[onnx.TensorProto]:
        """Change the graph as the exporter translated it, in place; the constants that are inputs until optimized."""
        return []


def read_arguments(model: nn.Module, example_inputs: Inputs, input_names: Sequence[str] | None = None) -> Arguments:
    """Take example inputs apart, on the CPU and without gradients.

    Args:
        model: The model they are for; its forward gives the names.
        example_inputs: A tensor, a tuple of arguments or a mapping of named ones; tensors may sit deeper.
        input_names: Other names, one for each tensor.

    Raises:
        InvalidTypeError: The inputs are not a tensor, tuple or mapping.
        InvalidValueError: They hold no tensor, or the names do not fit.
    """
    if not isinstance(example_inputs, (Tensor, tuple, Mapping)):
        raise InvalidTypeError(
            "export_onnx: example_inputs must be a tensor, a tuple of arguments or a mapping of named ones, "
            f"got {describe(example_inputs)}."
        )
    template = to_device(example_inputs, torch.device("cpu"))
    given = (tensor.detach() for _, tensor in tensor_paths(template))
    # Of a part of a tensor the exporter would trace the strides, for which ONNX has no operator.
    tensors = tuple(tensor.contiguous() if tensor.layout == torch.strided else tensor for tensor in given)
    if not tensors:
        raise InvalidValueError(f"export_onnx: example_inputs hold no tensor, got {describe(example_inputs)}.")
    found = _readable(path for path, _ in tensor_paths(_by_argument(model, template)))
    return Arguments(
        found if input_names is None else checked_names("input_names", input_names, found), tensors, template
    )


def checked_names(what: str, wanted: Sequence[str], found: Sequence[str]) -> tuple[str, ...]:
    """The user's names in place of ``found``, checked: as many, all different, none empty."""
    names = (wanted,) if isinstance(wanted, str) else tuple(wanted)
    if any(not isinstance(name, str) or not name for name in names):
        raise InvalidTypeError(f"export_onnx: {what} must be strings that are not empty, got {list(names)!r}.")
    if len(names) != len(found):
        listing = ", ".join(repr(name) for name in found)
        raise InvalidValueError(
            f"export_onnx: {what} must have {len(found)} entries, got {len(names)}; in order they replace {listing}."
        )
    if len(set(names)) != len(names):
        raise InvalidValueError(f"export_onnx: {what} must differ from each other, got {list(names)!r}.")
    return names


def _by_argument(model: nn.Module, template: Any) -> Mapping[str, Any]:
    """The inputs by the names of forward's arguments."""
    if isinstance(template, Mapping):
        return template
    arguments = template if isinstance(template, tuple) else (template,)
    try:
        return inspect.signature(model.forward).bind(*arguments).arguments
    except (TypeError, ValueError):  # no signature; or the inputs do not fit it: the error of the call says more
        return {f"input_{index}": argument for index, argument in enumerate(arguments)}


def _readable(paths: Iterable[str]) -> tuple[str, ...]:
    """Dotted paths as different names: ``states.0`` is ``states_0``, a bare index ``0`` is ``output_0``."""
    names: list[str] = []
    for path in paths:
        name = path.replace(".", "_") or "output"
        name = f"output_{name}" if name[0].isdigit() else name
        while name in names:
            name += "_"
        names.append(name)
    return tuple(names)


def _replace(value: Any, tensors: Iterator[Tensor]) -> Any:
    """The value with its tensors replaced, in the order in which ``tensor_paths`` finds them."""
    if isinstance(value, Tensor):
        return next(tensors)
    if isinstance(value, Mapping):
        return {key: _replace(item, tensors) for key, item in value.items()}
    if isinstance(value, (tuple, list)):
        items = [_replace(item, tensors) for item in value]
        return type(value)(*items) if isinstance(value, tuple) and is_named_tuple(value) else type(value)(items)
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        fields = [field.name for field in dataclasses.fields(value)]
        return dataclasses.replace(value, **{name: _replace(getattr(value, name), tensors) for name in fields})
    return value
