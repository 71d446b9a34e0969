"""How the prediction is found in the output of a model.

A model may return a tensor, or a mapping, dataclass, tuple or list, also nested. From these the tensor that ``output=``
names is taken, by default the entry ``logits`` or ``out``, or the only floating tensor.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Iterator, Mapping, MutableMapping
from typing import Any, TypeAlias

from torch import Tensor

from ..errors import InvalidTypeError, InvalidValueError

__all__ = ["OutputSelector", "describe", "is_named_tuple", "select_output", "tensor_paths", "with_tensors"]

#: What ``output=`` accepts: a key or dotted path, an index, or ``callable(model_output) -> Tensor``.
OutputSelector: TypeAlias = "str | int | Callable[[Any], Tensor]"

#: Usual names of the prediction in a structured output.
OUTPUT_NAMES = ("logits", "out")


def select_output(output: Any, selector: OutputSelector | None = None) -> Tensor:
    """The one floating tensor of a model's output.

    Args:
        output: A tensor, or a mapping, dataclass, tuple or list, also nested.
        selector: A key, field or dotted path (``"decoder.0"``), an index, or a callable on the whole output. Default:
            the entry ``logits`` or ``out``, or the only floating tensor.

    Raises:
        InvalidValueError: No tensor or more than one fits; the message lists paths and shapes.
        InvalidTypeError: The selector has another type, or it selects something else than a floating tensor.
    """
    if selector is None:
        return output if isinstance(output, Tensor) and output.is_floating_point() else _default_output(output)
    if callable(selector):
        return _floating(selector(output), "the callable")
    if isinstance(selector, bool) or not isinstance(selector, (str, int)):
        raise InvalidTypeError(f"output: must be a key, an index or a callable, got {selector!r}.")
    if isinstance(output, Tensor):
        raise InvalidValueError(
            f"output: {selector!r} selects nothing, because the model returns one tensor; leave output out."
        )
    found = output
    for step in selector.split(".") if isinstance(selector, str) and selector not in _entries(output) else [selector]:
        entries = _entries(found)
        if isinstance(step, str) and step not in entries and step.lstrip("-").isdigit():
            step = int(step)
        if isinstance(step, int) and step < 0 and isinstance(found, (tuple, list)):
            step += len(found)
        if step not in entries:
            raise InvalidValueError(f"output: {selector!r} is not in the model's output, which has {_listing(output)}.")
        found = entries[step]
    return _floating(found, repr(selector))


def describe(value: Any) -> str:
    """A short description of a value for messages."""
    if isinstance(value, Tensor):
        return f"a tensor of shape {tuple(value.shape)} and dtype {str(value.dtype).removeprefix('torch.')}"
    if isinstance(value, Mapping):
        return f"a {type(value).__name__} with {', '.join(repr(key) for key in list(value)[:10]) or 'no keys'}"
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of {len(value)}"
    return type(value).__name__


def is_named_tuple(value: tuple[Any, ...]) -> bool:
    """Whether a tuple is a named tuple, whose type takes positional values."""
    return type(value) is not tuple and isinstance(getattr(type(value), "_fields", None), tuple)


def _default_output(output: Any) -> Tensor:
    entries = _entries(output)
    for name in OUTPUT_NAMES:
        if isinstance(entries.get(name), Tensor):
            return _floating(entries[name], repr(name))
    floating = [tensor for _, tensor in tensor_paths(output) if tensor.is_floating_point()]
    if len(floating) == 1:
        return floating[0]
    raise InvalidValueError(
        f"output: the model must return one floating tensor, got {_listing(output)}; "
        "select one with output=, a key, index or callable."
    )


def _entries(value: Any) -> dict[Any, Any]:
    """The entries of a structured output by key, field name or index; empty for anything else."""
    if isinstance(value, Mapping):
        return dict(value)
    if isinstance(value, (tuple, list)):
        entries: dict[Any, Any] = dict(enumerate(value))
        if isinstance(value, tuple) and is_named_tuple(value):
            entries |= value._asdict()  # type: ignore[attr-defined]
        return entries
    if dataclasses.is_dataclass(value) and not isinstance(value, type):
        return {field.name: getattr(value, field.name) for field in dataclasses.fields(value)}
    return {}


def tensor_paths(value: Any, path: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every tensor of a structured output with its dotted path; fields of named tuples by name only."""
    if isinstance(value, Tensor):
        yield path, value
        return
    entries = _entries(value)
    if isinstance(value, tuple) and is_named_tuple(value):
        entries = {key: item for key, item in entries.items() if isinstance(key, str)}
    for key, item in entries.items():
        yield from tensor_paths(item, f"{path}.{key}" if path else str(key))


def with_tensors(value: Any, tensors: Iterator[Tensor]) -> Any:
    """A structured output of the same types around other tensors, in the order of :func:`tensor_paths`."""
    if isinstance(value, Tensor):
        return next(tensors)
    if isinstance(value, (tuple, list)):
        items = [with_tensors(item, tensors) for item in value]
        return type(value)(*items) if isinstance(value, tuple) and is_named_tuple(value) else type(value)(items)
    entries = {key: with_tensors(item, tensors) for key, item in _entries(value).items()}
    if isinstance(value, Mapping):
        same: Any = copy.copy(value) if isinstance(value, MutableMapping) else {}
        for key, item in entries.items():  # Hugging Face's outputs are dataclasses too
            same[key] = item
        return same
    return dataclasses.replace(value, **entries) if entries else value


def _listing(output: Any, most: int = 10) -> str:
    """Paths, shapes and dtypes of the tensors in an output, for messages."""
    found = [f"'{path}' {tuple(t.shape)} {str(t.dtype).removeprefix('torch.')}" for path, t in tensor_paths(output)]
    if not found:
        return f"no tensor in {describe(output)}"
    return ", ".join(found[:most]) + (f" and {len(found) - most} more" if len(found) > most else "")


def _floating(value: Any, what: str) -> Tensor:
    if isinstance(value, Tensor) and value.is_floating_point():
        return value
    raise InvalidTypeError(f"output: {what} must give a floating tensor, got {describe(value)}.")
