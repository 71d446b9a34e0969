"""Runs of the model itself: at the example, and at another size of every axis that may vary.

The trials are run before anything is exported. They find the axes that may vary, give the exporter sizes that it does
not take for constants (a batch of one is doubled), and hold the outputs that the written file must reproduce.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bensemble.errors import BensembleError, ExportError, one_line

from .arguments import FlatModel
from .axes import BATCH, Axis, resized

__all__ = ["Trial", "Trials", "run_trials"]


@dataclass(frozen=True)
class Trial:
    """One call of the model.

    Attributes:
        tensors: The inputs.
        outputs: The outputs by name.
        sizes: The size of each dynamic axis, by name.
    """

    tensors: tuple[Tensor, ...]
    outputs: dict[str, Tensor]
    sizes: dict[str, int]


@dataclass(frozen=True)
class Trials:
    """Outputs of a model for several inputs.

    Attributes:
        model: The model.
        example: The trial at the example.
        varied: The trial where every axis has another size; the same object as ``example`` where nothing varies.
        single: The trial at a batch of one, where models may branch or squeeze, or None.
        axes: The axes that vary.
    """

    model: FlatModel
    example: Trial
    varied: Trial
    single: Trial | None
    axes: tuple[Axis, ...]

    @property
    def different(self) -> tuple[Trial, ...]:
        """Every trial once."""
        return tuple({id(trial): trial for trial in (self.example, self.varied, self.single) if trial}.values())


def run_trials(model: FlatModel, axes: Sequence[Axis]) -> Trials:
    """Run a model in eval mode at the example and at another size of every axis.

    Raises:
        ExportError: The model rejects the example, or another size of an axis that has to vary.
    """
    sizes = {axis.name: axis.size for axis in axes}
    try:
        example = Trial(model.arguments.tensors, _run(model, model.arguments.tensors), sizes)
    except BensembleError:  # its message names the output
        raise
    except Exception as err:
        given = ", ".join(
            f"'{name}' {tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
            for name, tensor in zip(model.arguments.names, model.arguments.tensors, strict=True)
        )
        raise ExportError(
            f"export_onnx: the model rejects example_inputs, got {one_line(err)}; they are {given}."
        ) from err
    varied, accepted = example, []
    for axis in axes:
        found, failure = _vary(model, varied, axis, axis.other_sizes())
        if found is not None:
            varied = found
            accepted.append(axis)
        elif axis.required and failure is not None:
            index, dim = axis.places[0]
            name, tried = model.arguments.names[index], ", ".join(map(str, axis.other_sizes()))
            raise ExportError(
                f"export_onnx: axis {dim} of '{name}' ({axis.name}) must vary, but the model accepts {axis.size} and "
                f"not {tried}, got {one_line(failure)}; if the size is fixed, pass dynamic_shapes={{'{name}': {{}}}}."
            )
        elif failure is None:  # the user's bounds leave no other size
            accepted.append(axis)
    batch = next((axis for axis in accepted if axis.name == BATCH and axis.size > 1 and axis.allows(1)), None)
    single = _vary(model, example, batch, [1])[0] if batch else None
    return Trials(model, example, varied, single, tuple(accepted))


def _vary(model: FlatModel, trial: Trial, axis: Axis, sizes: Sequence[int]) -> tuple[Trial | None, Exception | None]:
    """The trial at the first of the sizes that the model accepts, or why it accepts none."""
    failure: Exception | None = None
    for size in sizes:
        try:
            tensors = resized(trial.tensors, axis, size)
            return Trial(tensors, _run(model, tensors), {**trial.sizes, axis.name: size}), None
        except Exception as err:
            failure = failure or err
    return None, failure


@torch.no_grad()
def _run(model: FlatModel, tensors: Sequence[Tensor]) -> dict[str, Tensor]:
    copies = [tensor.clone() for tensor in tensors]  # a model may write into its inputs
    return {name: output.detach().clone() for name, output in model.named(copies).items()}
