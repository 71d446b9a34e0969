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

__all__ = ["CalibrationBatches"]


class CalibrationBatches:
    """Calibration batches, checked one by one, as often as they are asked for."""

    def __init__(self, data: Any, trials: Trials) -> None:
        self.data, self.trials = data, trials

    def __iter__(self) -> Iterator[tuple[Tensor, ...]]:
        cpu = torch.device("cpu")
        loader = is_loader(self.data)
        found = read_batches(self.data, None, cpu) if loader else [(to_device(self.data, cpu), None)]
        empty = True
        for index, (inputs, _) in enumerate(found):
            empty = False
            yield self._checked(inputs, f"calibration_data (batch {index})" if loader else "calibration_data")
        if empty:
            raise InvalidValueError("export_onnx: calibration_data must hold at least one batch, got none.")

    def _checked(self, inputs: Any, where: str) -> tuple[Tensor, ...]:
        """The tensors of a batch, as the file takes them."""
        arguments, free = self.trials.model.arguments, {place for axis in self.trials.axes for place in axis.places}
        if isinstance(inputs, dict) and isinstance(arguments.template, dict):
            inputs = {key: inputs[key] for key in arguments.template if key in inputs}
        given = [tensor.detach() for _, tensor in tensor_paths(inputs)]
        if len(given) != len(arguments.names):
            raise InvalidValueError(
                f"export_onnx: {where} must hold {len(arguments.names)} tensors ({', '.join(arguments.names)}) as "
                f"example_inputs does, got {describe(inputs)}."
            )
        for index, (name, tensor, like) in enumerate(zip(arguments.names, given, arguments.tensors, strict=True)):
            sizes = [
                (axis, size)
                for axis, size in enumerate(like.shape)
                if tensor.ndim == like.ndim and (index, axis) not in free
            ]
            if tensor.dtype != like.dtype or tensor.ndim != like.ndim or any(tensor.shape[a] != n for a, n in sizes):
                raise InvalidValueError(
                    f"export_onnx: {where} must be like example_inputs, {describe(like)} for '{name}', got "
                    f"{describe(tensor)}; prepare it as the model's inputs are prepared."
                )
            if tensor.is_floating_point() and not tensor.isfinite().all():
                raise InvalidValueError(f"export_onnx: {where} must be finite, got NaN or infinity in '{name}'.")
        return tuple(given)
