"""How the inputs of a model and the batches of a loader are read, everywhere in the toolkit.

Inputs: a tensor is ``model(t)``, a tuple ``model(*t)``, a mapping ``model(**m)``. Batches: the first element of a tuple
or list is the inputs and the second the target; of a mapping ``labels`` or ``label`` is the target and the rest the
inputs. Outputs are read by :func:`bensemble.models.outputs.select_output`.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any, TypeAlias

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence
from torch.utils.data import Dataset, RandomSampler, SequentialSampler

from ..checks import check_takes
from ..errors import InvalidTypeError, InvalidValueError
from .argument_names import check_names
from .outputs import describe, is_named_tuple

__all__ = [
    "Inputs",
    "Unpack",
    "batch_size",
    "call",
    "check_finite_inputs",
    "check_loader",
    "device_of",
    "examples_along",
    "first_examples",
    "is_loader",
    "is_shuffled",
    "read_batches",
    "same_data",
    "split_batch",
    "split_inputs",
    "to_device",
]

#: The inputs of one call of a model.
Inputs: TypeAlias = "Tensor | tuple[Any, ...] | Mapping[str, Any]"
#: How a user splits a batch: ``callable(batch) -> (inputs, target)``.
Unpack: TypeAlias = Callable[[Any], tuple[Any, Any]]

#: Keys of the target in a mapping.
TARGET_KEYS = ("labels", "label")


def call(model: Callable[..., Any], inputs: Inputs) -> Any:
    """The output of the model: ``model(t)``, ``model(*t)`` or ``model(**m)``.

    Args:
        model: A module or another callable.
        inputs: A tensor or packed sequence (one argument), a tuple (several), a mapping (by name). Put any other object
            into a tuple: ``(graph,)``.

    Raises:
        InvalidTypeError: ``inputs`` is something else.
    """
    if isinstance(inputs, (Tensor, PackedSequence)):
        return model(inputs)
    if isinstance(inputs, tuple):
        return model(*inputs)
    if isinstance(inputs, Mapping):
        try:
            return model(**inputs)
        except TypeError:  # asking before would cost every forward
            check_names(model, inputs)
            raise
    raise _not_inputs(inputs)


def check_finite_inputs(verb: str, inputs: Inputs, batch: int | str | None = None) -> None:
    """Raise for NaN and infinity among inputs, from which a network may make an answer that looks sure.

    The -inf of an additive mask is allowed: of a tensor that has nothing above 0.
    """
    for tensor in _input_tensors((inputs.data,) if isinstance(inputs, PackedSequence) else inputs):
        if not tensor.is_floating_point() or tensor.layout != torch.strided or bool(tensor.isfinite().all()):
            continue
        bad = ~tensor.isfinite()
        if bool((tensor <= 0).all()):
            continue
        values, place = tensor[bad], bad.nonzero()[0].tolist()
        raise InvalidValueError(
            f"{verb}: inputs must be finite, got {values[0].item()} at {place} of a tensor of shape "
            f"{tuple(tensor.shape)}{'' if batch is None else f' in batch {batch}'}, one of {len(values)} such values; "
            "leave these examples out, or fill in what is missing."
        )


def split_batch(
    batch: Any, unpack: Unpack | None = None, model: Callable[..., Any] | None = None
) -> tuple[Inputs, Any]:
    """A batch as ``(inputs, target)``; the target is None if there is none.

    Args:
        batch: A tensor, a tuple or list ``(inputs, target, ...)``, or a mapping with ``labels`` or ``label``. A list of
            inputs becomes a tuple, because torch's default collate turns tuples into lists.
        unpack: ``callable(batch) -> (inputs, target)``, used instead of these rules.
        model: What the inputs of a mapping must go to by name.

    Raises:
        InvalidTypeError: The batch is of another type, the model does not take its keys, or ``unpack`` does not take a
            batch or does not return a pair.
        InvalidValueError: The batch is empty, or has both target keys.
    """
    if unpack is not None:
        check_takes("loader", "unpack", unpack, "batch")
        pair = unpack(batch)
        if not isinstance(pair, (tuple, list)) or len(pair) != 2:
            raise InvalidTypeError(f"unpack: must return a pair (inputs, target), got {describe(pair)}.")
        return _as_inputs(pair[0]), pair[1]
    if isinstance(batch, (Tensor, PackedSequence)):
        return batch, None
    if isinstance(batch, Mapping):
        keys = [key for key in TARGET_KEYS if key in batch]
        if len(keys) > 1:
            raise InvalidValueError("loader: a batch has both 'labels' and 'label'; pass unpack= to select the target.")
        inputs = {key: value for key, value in batch.items() if key not in keys}
        if model is not None:
            check_names(model, inputs, keys[0] if keys else None, from_loader=True)
        return inputs, batch[keys[0]] if keys else None
    if isinstance(batch, (tuple, list)):
        if not batch:
            raise InvalidValueError("loader: a batch is empty; pass unpack= to split it.")
        return _as_inputs(batch[0]), batch[1] if len(batch) > 1 else None
    raise InvalidTypeError(
        f"loader: a batch must be a tensor, tuple, list or mapping, got {describe(batch)}; pass unpack= to split it."
    )


def read_batches(
    loader: Iterable[Any], unpack: Unpack | None, device: torch.device, model: Callable[..., Any] | None = None
) -> Iterator[tuple[Inputs, Any]]:
    """Every batch of a loader for a model as ``(inputs, target)`` on a device."""
    for batch in loader:
        inputs, target = split_batch(batch, unpack, model)
        yield to_device(inputs, device), to_device(target, device)


def check_loader(verb: str, loader: Any, again: bool = False) -> None:
    """Raise unless the value gives batches; with ``again`` more than once, as no iterator does."""
    if not is_loader(loader) or (again and isinstance(loader, Iterator)):
        often = " more than once" if again else ""
        raise InvalidTypeError(
            f"{verb}: loader must give batches{often}, got {type(loader).__name__}; wrap the inputs in a DataLoader, "
            "or pass a list of batches."
        )


def is_loader(inputs: Any) -> bool:
    """True for an iterable of batches, False for the inputs of one call; InvalidTypeError for anything else."""
    if isinstance(inputs, (Tensor, tuple, Mapping)):
        return False
    if isinstance(inputs, Iterable) and not isinstance(inputs, (str, bytes)) and type(inputs).__module__ != "numpy":
        return True
    raise _not_inputs(inputs)


def device_of(model: nn.Module) -> torch.device:
    """The device of the first parameter or buffer of the model; the CPU without tensors."""
    for tensor in itertools.chain(model.parameters(), model.buffers()):
        return tensor.device
    return torch.device("cpu")


def is_shuffled(loader: Any) -> bool:
    """Whether a loader is known to read its examples in a random order."""
    return isinstance(_sampler(loader), RandomSampler)


def same_data(loader: Any, other: Any) -> bool:
    """Whether two loaders read the same examples, as far as can be seen: one object, or all of one data set."""
    whole = all(type(_sampler(given)) in (SequentialSampler, RandomSampler) for given in (loader, other))
    return loader is other or (whole and loader.dataset is other.dataset)


def _sampler(loader: Any) -> Any:
    """What gives the order of a DataLoader's examples, None of other loaders."""
    return getattr(getattr(loader, "batch_sampler", None), "sampler", None)


def to_device(value: Any, device: torch.device) -> Any:
    """The value with every tensor in it on ``device``."""
    return _with_tensors(value, lambda tensor: tensor.to(device))


def batch_size(inputs: Inputs) -> int:
    """Number of examples: axis 0 of the first tensor that has axes.

    Raises:
        InvalidValueError: No tensor has axes.
    """
    if isinstance(inputs, PackedSequence):
        return int(inputs.batch_sizes[0])
    for tensor in _input_tensors(inputs):
        if tensor.ndim:
            return tensor.shape[0]
    raise InvalidValueError(
        f"inputs: must hold a tensor with a batch axis, got {describe(inputs)}; make tensors of arrays, with "
        "torch.as_tensor or in unpack=."
    )


def examples_along(inputs: Any, axis: int) -> int | None:
    """The common length of all tensors along an axis, of vectors along their only one; None if they have none."""
    lengths = {_length(tensor, axis) for tensor in _input_tensors(inputs)}
    return None if isinstance(inputs, PackedSequence) or len(lengths) != 1 else lengths.pop()


def split_inputs(inputs: Inputs, size: int, axis: int = 0) -> Iterator[Any]:
    """The inputs in pieces of at most ``size`` examples along an axis.

    Shapes alone do not say that a model gives for the pieces what it gives for the whole: a recurrent network may take
    time first, and nodes of a graph, contrastive pairs and batch statistics belong together. So compare both first.

    Raises:
        InvalidValueError: The tensors differ in their number of examples.
    """
    total = examples_along(inputs, axis)
    if total is None and batch_size(inputs) > size:
        raise InvalidValueError(
            f"inputs: every tensor must have the {batch_size(inputs)} examples of the first on axis {axis} to be cut "
            f"into chunks, got {describe(inputs)}; leave chunk_size out or pass a loader."
        )
    if total is None or total <= size:
        yield inputs
        return
    for start in range(0, total, size):
        yield first_examples(inputs, size, axis, start)


def first_examples(inputs: Inputs, size: int, axis: int = 0, start: int = 0) -> Inputs:
    """At most ``size`` examples of inputs that can be cut along the axis."""

    def cut(tensor: Tensor) -> Tensor:
        along = min(axis, tensor.ndim - 1)
        return tensor.narrow(along, start, min(size, tensor.shape[along] - start))

    return _with_tensors(inputs, cut)


def _length(tensor: Tensor, axis: int) -> int | None:
    along = 0 if tensor.ndim == 1 else axis
    return tensor.shape[along] if along < tensor.ndim else None


def _as_inputs(value: Any) -> Inputs:
    """Inputs from a batch; collate may have turned a tuple into a list."""
    return tuple(value) if isinstance(value, list) else value


def _input_tensors(inputs: Any) -> Iterator[Tensor]:
    items = inputs.values() if isinstance(inputs, Mapping) else inputs if isinstance(inputs, tuple) else (inputs,)
    for item in items:
        if isinstance(item, Tensor):
            yield item
        elif isinstance(item, (tuple, list, Mapping)):
            yield from _input_tensors(tuple(item) if isinstance(item, list) else item)


def _with_tensors(value: Any, change: Callable[[Any], Any]) -> Any:
    """The value with every tensor and packed sequence in it changed; containers keep their type, mappings are dicts."""
    if isinstance(value, (Tensor, PackedSequence)):
        return change(value)
    if isinstance(value, Mapping):
        return {key: _with_tensors(item, change) for key, item in value.items()}
    if isinstance(value, tuple):
        items = [_with_tensors(item, change) for item in value]
        return type(value)(*items) if is_named_tuple(value) else tuple(items)
    return [_with_tensors(item, change) for item in value] if isinstance(value, list) else value


def _not_inputs(inputs: Any) -> InvalidTypeError:
    advice = "pass a tuple for several arguments, torch.as_tensor for an array."
    if isinstance(inputs, Dataset):
        advice = "wrap a Dataset in a DataLoader, which gives batches."
    return InvalidTypeError(f"inputs: must be a tensor, a tuple or a mapping, got {describe(inputs)}; {advice}")
