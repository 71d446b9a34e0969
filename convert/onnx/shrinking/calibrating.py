"""Calibration data for quantization: inputs like the example's, one batch after the other."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from bensemble.errors import InvalidValueError
from bensemble.models.batches import is_loader, read_batches, to_device
from bensemble.models.outputs import describe, tensor_paths

from ..inputs.trials import Trials

__all__ = ["calibration_batches"]


def calibration_batches(data: Any, trials: Trials) -> Iterator[tuple[tuple[Tensor, ...], Any]]:
    """The tensors of every batch in the order of the file's inputs, checked when it is read, and its target or None.

    Raises:
        InvalidValueError: There is no batch, or one that the file cannot take.
    """
    cpu = torch.device("cpu")
    loader = is_loader(data)
    found = read_batches(data, None, cpu) if loader else [(to_device(data, cpu), None)]
    empty = True
    for index, (inputs, target) in enumerate(found):
        empty = False
        yield _checked(inputs, trials, f"calibration_data (batch {index})" if loader else "calibration_data"), target
    if empty:
        raise InvalidValueError("export_onnx: calibration_data must hold at least one batch, got none.")


def _checked(inputs: Any, trials: Trials, where: str) -> tuple[Tensor, ...]:
    """The tensors of a batch, as the file takes them."""
    arguments, free = trials.model.arguments, {place for axis in trials.axes for place in axis.places}
    if isinstance(inputs, dict) and isinstance(arguments.template, dict):
        inputs = {key: inputs[key] for key in arguments.template if key in inputs}
    given = [tensor.detach() for _, tensor in tensor_paths(inputs)]
    if len(given) != len(arguments.names):
        raise InvalidValueError(
            f"export_onnx: {where} must hold {len(arguments.names)} tensors ({', '.join(arguments.names)}) as "
            f"example_inputs does, got {describe(inputs)}."
        )
    for index, (name, tensor, like) in enumerate(zip(arguments.names, given, arguments.tensors, strict=True)):
        fixed = [axis for axis in range(like.ndim) if (index, axis) not in free]
        fits = tensor.dtype == like.dtype and tensor.ndim == like.ndim
        if not fits or any(tensor.shape[axis] != like.shape[axis] for axis in fixed):
            raise InvalidValueError(
                f"export_onnx: {where} must be like example_inputs, {describe(like)} for '{name}', got "
                f"{describe(tensor)}; prepare it as the model's inputs are prepared."
            )
        if tensor.is_floating_point() and not tensor.isfinite().all():
            raise InvalidValueError(f"export_onnx: {where} must be finite, got NaN or infinity in '{name}'.")
    return tuple(given)
