"""How inputs, loader batches and outputs are read: once, for every call that runs a model.

Inputs: a tensor is ``model(t)``, a tuple ``model(*t)``, a mapping ``model(**m)``. A loader yields batches; a tuple or
list gives its first element as inputs and its second as target, a mapping gives ``labels`` or ``label`` as target and
the rest as inputs. What comes out is read by :func:`bensemble.models.outputs.select_output`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from ..errors import InvalidTypeError, InvalidValueError
from .outputs import OutputSelector, describe, is_named_tuple, select_output

__all__ = [
    "Inputs",
    "OutputSelector",
    "Unpack",
    "batch_size",
    "call",
    "device_of",
    "is_loader",
    "read_batches",
    "select_output",
    "split_batch",
    "split_inputs",
    "to_device",
]

#: What one call of a model takes.
Inputs: TypeAlias = "Tensor | tuple[Any, ...] | Mapping[str, Any]"
#: How a user takes a loader batch apart: ``callable(batch) -> (inputs, target)``.
Unpack: TypeAlias = Callable[[Any], tuple[Any, Any]]

#: Keys under which a mapping carries its target.
TARGET_KEYS = ("labels", "label")


def call(model: Callable[..., Any], inputs: Inputs) -> Any:
    """The model's own output: ``model(t)``, ``model(*t)`` or ``model(**m)``.

    Args:
        model: Any module, or another callable.
        inputs: A tensor or packed sequence (one argument), a tuple (several), a mapping (named ones). Any other object
            goes into a tuple: ``(graph,)``.

    Raises:
        InvalidTypeError: ``inputs`` is something else.
    """
    if isinstance(inputs, (Tensor, PackedSequence)):
        return model(inputs)
    if isinstance(inputs, tuple):
        return model(*inputs)
    if isinstance(inputs, Mapping):
        return model(**inputs)
    raise _not_inputs(inputs)


def split_batch(batch: Any, unpack: Unpack | None = None) -> tuple[Inputs, Any]:
    """A loader's batch as ``(inputs, target)``; the target is None where there is none.

    Args:
        batch: A tensor, a tuple or list ``(inputs, target, ...)``, or a mapping with ``labels`` or ``label``. Lists of
            inputs become tuples, because torch's default collate turns every tuple into a list.
        unpack: ``callable(batch) -> (inputs, target)``, used instead of these rules.

    Raises:
        InvalidTypeError: The batch is of another type, or ``unpack`` does not return a pair.
        InvalidValueError: The batch is empty, or has both target keys.
    """
    if unpack is not None:
        pair = unpack(batch)
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise InvalidTypeError(f"unpack: must return a pair (inputs, target), got {describe(pair)}.")
        return _as_inputs(pair[0]), pair[1]
    if isinstance(batch, (Tensor, PackedSequence)):
        return batch, None
    if isinstance(batch, Mapping):
        keys = [key for key in TARGET_KEYS if key in batch]
        if len(keys) > 1:
            raise InvalidValueError(
                "loader: a batch has both 'labels' and 'label'; pass unpack= to say which is meant."
            )
        return {key: value for key, value in batch.items() if key not in keys}, batch[keys[0]] if keys else None
    if isinstance(batch, (tuple, list)):
        if not batch:
            raise InvalidValueError("loader: a batch is empty; pass unpack= to take it apart.")
        return _as_inputs(batch[0]), batch[1] if len(batch) > 1 else None
    raise InvalidTypeError(
        f"loader: a batch must be a tensor, tuple, list or mapping, got {describe(batch)}; "
        "pass unpack= to take it apart."
    )


def read_batches(loader: Iterable[Any], unpack: Unpack | None, device: torch.device) -> Iterator[tuple[Inputs, Any]]:
    """Every batch of a loader as ``(inputs, target)`` on a device."""
    for batch in loader:
        inputs, target = split_batch(batch, unpack)
        yield to_device(inputs, device), to_device(target, device)


def is_loader(inputs: Any) -> bool:
    """True for an iterable of batches, False for the inputs of one call; anything else raises InvalidTypeError."""
    if isinstance(inputs, (Tensor, tuple, Mapping)):
        return False
    if isinstance(inputs, Iterable) and not isinstance(inputs, (str, bytes)) and type(inputs).__module__ != "numpy":
        return True
    raise _not_inputs(inputs)


def device_of(model: nn.Module) -> torch.device:
    """The device of the model's first parameter or buffer; the CPU for a model without tensors."""
    for tensor in (*model.parameters(), *model.buffers()):
        return tensor.device
    return torch.device("cpu")


def to_device(value: Any, device: torch.device) -> Any:
    """The value with every tensor in it on ``device``; containers keep their kind, mappings become dicts."""
    if isinstance(value, (Tensor, PackedSequence)):
        return value.to(device)  # type: ignore[arg-type]  # its stub knows only strings
    if isinstance(value, Mapping):
        return {key: to_device(item, device) for key, item in value.items()}
    if isinstance(value, tuple):
        items = [to_device(item, device) for item in value]
        return type(value)(*items) if is_named_tuple(value) else tuple(items)
    if isinstance(value, list):
        return [to_device(item, device) for item in value]
    return value


def batch_size(inputs: Inputs) -> int:
    """Number of examples: axis 0 of the first tensor that has axes.

    Raises:
        InvalidValueError: There is no such tensor.
    """
    if isinstance(inputs, PackedSequence):
        return int(inputs.batch_sizes[0])
    for tensor in _input_tensors(inputs):
        if tensor.ndim:
            return tensor.shape[0]
    raise InvalidValueError(f"inputs: must hold a tensor with a batch axis, got {describe(inputs)}.")


def split_inputs(inputs: Inputs, size: int) -> Iterator[Inputs]:
    """The inputs in pieces of at most ``size`` examples along axis 0.

    Raises:
        InvalidValueError: The tensors do not all have the same number of examples, so that axis 0 cannot be cut.
    """
    total = batch_size(inputs)
    if total <= size:
        yield inputs
        return
    lengths = {tensor.shape[0] if tensor.ndim else None for tensor in _input_tensors(inputs)}
    if isinstance(inputs, PackedSequence) or lengths != {total}:
        raise InvalidValueError(
            f"inputs: every tensor must have the {total} examples of the first on axis 0 to be cut into chunks, "
            f"got {describe(inputs)}; leave chunk_size out or pass a loader."
        )
    for start in range(0, total, size):
        yield _slice(inputs, slice(start, start + size))


def _as_inputs(value: Any) -> Inputs:
    """Inputs out of a batch, where collate may have made a list of a tuple."""
    return tuple(value) if isinstance(value, list) else value


def _input_tensors(inputs: Any) -> Iterator[Tensor]:
    items = inputs.values() if isinstance(inputs, Mapping) else inputs if isinstance(inputs, tuple) else (inputs,)
    for item in items:
        if isinstance(item, Tensor):
            yield item
        elif isinstance(item, (tuple, list, Mapping)):
            yield from _input_tensors(tuple(item) if isinstance(item, list) else item)


def _slice(value: Any, part: slice) -> Any:
    if isinstance(value, Tensor):
        return value[part]
    if isinstance(value, Mapping):
        return {key: _slice(item, part) for key, item in value.items()}
    if isinstance(value, tuple):
        items = [_slice(item, part) for item in value]
        return type(value)(*items) if is_named_tuple(value) else tuple(items)
    return [_slice(item, part) for item in value] if isinstance(value, list) else value


def _not_inputs(inputs: Any) -> InvalidTypeError:
    return InvalidTypeError(
        f"inputs: must be a tensor, a tuple or a mapping, got {describe(inputs)}; "
        "pass a tuple for several arguments, torch.as_tensor for an array."
    )
