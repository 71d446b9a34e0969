"""Runs of the model itself: at the example, and at another size of every axis that may vary.

The trials are run before anything is exported. They find the axes that may vary, give the exporter sizes that it does
not take for constants (a batch of one is doubled), and hold the outputs that the written file must reproduce.
"""

from __future__ import annotations

import logging
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from bensemble.errors import BensembleError, ExportError, one_line
from bensemble.models.undisturbed import undisturbed

from .arguments import FlatModel
from .axes import BATCH, Axis, resized
from .data_reads import reads_data
from .degenerate import degenerate_inputs

__all__ = ["Trial", "Trials", "run_trials"]

logger = logging.getLogger("bensemble.onnx")


@dataclass(frozen=True)
class Trial:
    """One call of the model.

    Attributes:
        tensors: The inputs.
        outputs: The outputs by name.
        sizes: The size of each dynamic axis, by name.
        degenerate: What is unusual in the inputs, in words; empty for the example and its variations.
    """

    tensors: tuple[Tensor, ...]
    outputs: dict[str, Tensor]
    sizes: dict[str, int]
    degenerate: str = ""

    def __str__(self) -> str:
        sizes = ", ".join(f"{name} {size}" for name, size in self.sizes.items()) or "the example's shapes"
        return f"{sizes} {self.degenerate}".rstrip()


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

    @cached_property
    def reads_data(self) -> bool:
        """Whether the model reads ``.data``; it is refused where it writes there."""
        return reads_data(self.model.name, lambda: _run(self.model, self.example.tensors))

    @cached_property
    def degenerate(self) -> tuple[Trial, ...]:
        """Trials with inputs such as zeros, those that the model accepts, at the size of ``varied``."""
        found = []
        for words, tensors in degenerate_inputs(self.varied.tensors):
            try:
                found.append(Trial(tensors, _run(self.model, tensors), self.varied.sizes, words))
            except Exception as err:
                logger.debug("the model rejects inputs %s: %s", words, one_line(err))
        return tuple(found)

    def moved(self, trial: Trial, size: float) -> dict[str, Tensor]:
        """The outputs for the inputs of a trial plus noise, relative to their largest values or the example's."""
        generator, tensors = torch.Generator().manual_seed(0), []
        for tensor, typical in zip(trial.tensors, self.example.tensors, strict=True):
            if tensor.is_floating_point() and tensor.numel():
                largest = tensor.abs().max() or typical.abs().max()
                noise = 2 * torch.rand(tensor.shape, generator=generator, dtype=torch.float64) - 1
                tensor = tensor + (size * largest * noise).to(tensor.dtype)
            tensors.append(tensor)
        try:
            return _run(self.model, tensors)
        except Exception:
            return {}


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
    if single is not None and not all(output.numel() for output in single.outputs.values()):
        single = None  # one offset is no bag where the last one is the end
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


def _run(model: FlatModel, tensors: Sequence[Tensor]) -> dict[str, Tensor]:
    """The outputs of one run, which leaves no trace for the next."""
    copies = [tensor.clone() for tensor in tensors]  # a model may write into its inputs
    with undisturbed(model.network):
        return {name: output.detach().clone() for name, output in model.named(copies).items()}
