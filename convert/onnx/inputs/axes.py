"""Which axes of the inputs may vary: ``batch``, the ``sequence`` of integer inputs, and what the user names.

Axis 0 of every tensor as long as the first one is ``batch``, axis 1 of integer (and boolean) tensors is ``sequence``,
but not of pictures: uint8 with three axes or more.
``dynamic_shapes={"image": {0: "batch", 2: "height"}}`` replaces the rule for the inputs it names;
``{"image": {}}`` fixes every axis of that input.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor
from torch.export import Dim

from bensemble.errors import InvalidTypeError, InvalidValueError, refuse

from .arguments import Arguments

__all__ = ["BATCH", "SEQUENCE", "Axis", "dynamic_axes", "resized"]

BATCH, SEQUENCE = "batch", "sequence"


@dataclass(frozen=True)
class Axis:
    """An axis that may vary, with every place where it occurs.

    Attributes:
        name: Its name in the file.
        places: Pairs (index of the tensor, axis).
        size: Its size in the example.
        required: False for the default ``sequence``, which is dropped where the model does not allow it.
        smallest: Lower bound that the user set with ``torch.export.Dim``, or None.
        largest: Upper bound that the user set with ``torch.export.Dim``, or None.
    """

    name: str
    places: tuple[tuple[int, int], ...]
    size: int
    required: bool = True
    smallest: int | None = None
    largest: int | None = None

    def allows(self, size: int) -> bool:
        """Whether a size is within the user's bounds."""
        return (self.smallest or 1) <= size and (self.largest is None or size <= self.largest)

    def other_sizes(self) -> list[int]:
        """Sizes to try that differ from the example's, in the order in which they are tried."""
        size = self.size
        if self.required:
            wanted = [size + 1, 2 * size, size - 1, size // 2]
        else:  # a longer sequence may exceed a table of positions
            wanted = [size - 1 if size > 2 else size + 1, size + 1, 2 * size, size // 2]
        smallest = 2 if size <= 2 else 1  # a batch or sequence of one hides what varies
        return [other for other in dict.fromkeys(wanted) if other >= smallest and other != size and self.allows(other)]


def dynamic_axes(arguments: Arguments, dynamic_shapes: Mapping[str, Any] | None = None) -> tuple[Axis, ...]:
    """The axes that may vary, in the order in which they occur.

    Raises:
        InvalidTypeError: ``dynamic_shapes`` is not a mapping of mappings.
        InvalidValueError: It names an input or axis that does not exist, or gives one name to different sizes.
    """
    requested = _requested(arguments, dynamic_shapes)
    default = _default(arguments)
    merged: dict[str, Axis] = {}
    problems: list[str] = []
    for index, (name, tensor) in enumerate(zip(arguments.names, arguments.tensors, strict=True)):
        for axis, label in (requested[name] if name in requested else default[index]).items():
            if tensor.shape[axis] == 0:
                problems.append(f"example_inputs: axis {axis} of '{name}' is empty; give at least one entry.")
                continue
            new = _axis(label, index, axis, tensor.shape[axis], required=name in requested or axis == 0)
            old = merged.setdefault(new.name, new)
            if old is new:
                continue
            if old.size != new.size:
                problems.append(
                    f"dynamic_shapes: '{new.name}' is axis {axis} of '{name}' with size {new.size} and another axis "
                    f"with size {old.size}; give them different names."
                )
            places, needed = (*old.places, *new.places), old.required or new.required
            merged[new.name] = replace(old, places=places, required=needed)
    refuse("export_onnx", problems, InvalidValueError)
    return tuple(merged.values())


def resized(tensors: Sequence[Tensor], axis: Axis, size: int) -> tuple[Tensor, ...]:
    """The tensors with another size along one axis: entries repeated or left out.

    Integers that rise from 0, such as the offsets of bags, still do, as far as before. Floating entries are scaled by
    factors from 1 down to 1/2, so that no two slices are equal.
    """
    varied = list(tensors)
    for index, dim in axis.places:
        tensor = varied[index]
        if _rises_from_zero(tensor):
            varied[index] = torch.linspace(0, int(tensor[-1]), size).to(tensor)
            continue
        tensor = tensor.index_select(dim, torch.arange(size, device=tensor.device) % tensor.shape[dim])
        if tensor.is_floating_point():
            factors = torch.linspace(1.0, 0.5, size, device=tensor.device).to(tensor.dtype)
            tensor = tensor * factors.reshape([-1 if d == dim else 1 for d in range(tensor.ndim)])
        varied[index] = tensor
    return tuple(varied)


def _rises_from_zero(tensor: Tensor) -> bool:
    """Whether a tensor holds positions: integers in order, from 0 on."""
    if tensor.ndim != 1 or tensor.dtype not in (torch.int32, torch.int64):
        return False
    return bool(tensor[0] == 0 and tensor[-1] > 0 and (tensor.diff() >= 0).all())


def _default(arguments: Arguments) -> list[dict[int, str]]:
    """``batch`` and ``sequence`` for every tensor."""
    batch = next((tensor.shape[0] for tensor in arguments.tensors if tensor.ndim), None)
    sequence: int | None = None
    found: list[dict[int, str]] = []
    for name, tensor in zip(arguments.names, arguments.tensors, strict=True):
        axes: dict[int, str] = {}
        if tensor.ndim and tensor.shape[0] == batch:
            axes[0] = BATCH
            picture = tensor.dtype == torch.uint8 and tensor.ndim > 2
            if tensor.ndim > 1 and not (picture or tensor.is_floating_point() or tensor.is_complex()):
                sequence = tensor.shape[1] if sequence is None else sequence
                axes[1] = SEQUENCE if tensor.shape[1] == sequence else f"{name}_{SEQUENCE}"
        found.append(axes)
    return found


def _requested(arguments: Arguments, dynamic_shapes: Mapping[str, Any] | None) -> dict[str, dict[int, Any]]:
    """The user's axes for each input that they name, checked, with axes counted from the front."""
    if dynamic_shapes is None:
        return {}
    if not isinstance(dynamic_shapes, Mapping):
        raise InvalidTypeError(
            "export_onnx: dynamic_shapes must map input names to {axis: name}, "
            f"got {type(dynamic_shapes).__name__}; for example {{'{arguments.names[0]}': {{0: 'batch'}}}}."
        )
    sizes = {name: tensor.ndim for name, tensor in zip(arguments.names, arguments.tensors, strict=True)}
    requested: dict[str, dict[int, Any]] = {}
    problems: list[str] = []
    for name, axes in dynamic_shapes.items():
        if name not in sizes:
            problems.append(f"dynamic_shapes: no input is called {name!r}; the inputs are {list(sizes)}.")
            continue
        requested[name] = {}
        if axes is not None and not isinstance(axes, Mapping):
            problems.append(
                f"dynamic_shapes: '{name}' must map axes to names, got {axes!r}; for example {{0: 'batch'}}."
            )
            continue
        for axis, label in (axes or {}).items():
            if isinstance(axis, bool) or not isinstance(axis, int) or not -sizes[name] <= axis < sizes[name]:
                problems.append(f"dynamic_shapes: '{name}' has {sizes[name]} axes, got axis {axis!r}.")
            elif label is None:
                continue
            elif not label or type(label) not in (str, Dim):  # derived dimensions have another type
                problems.append(
                    f"dynamic_shapes: axis {axis} of '{name}' must be a name or a torch.export.Dim, got {label!r}; "
                    "leave an axis out to fix it."
                )
            else:
                requested[name][axis % sizes[name]] = label
    refuse("export_onnx", problems, InvalidValueError)
    return requested


def _axis(label: str | Dim, index: int, axis: int, size: int, required: bool) -> Axis:
    if isinstance(label, str):
        return Axis(label, ((index, axis),), size, required)
    largest = label.max if isinstance(label.max, int) and label.max < torch.iinfo(torch.int64).max else None
    return Axis(label.__name__, ((index, axis),), size, required, label.min, largest)
