"""What the model itself answers: at the example, and at every other size that it accepts.

The trials are run before anything is exported. They tell which axes may vary at all, give the exporter sizes that do
not look special (a batch of one is doubled), and are what the written file has to reproduce.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from bensemble.errors import BensembleError, ExportError

from .arguments import FlatModel
from .axes import BATCH, Axis, resized

__all__ = ["Trial", "Trials", "one_line", "run_trials"]


@dataclass(frozen=True)
class Trial:
    """One call of the model.

    Attributes:
        tensors: What went in.
        outputs: What came out, by name.
        sizes: The size of each dynamic axis, by name.
    """

    tensors: tuple[Tensor, ...]
    outputs: dict[str, Tensor]
    sizes: dict[str, int]


@dataclass(frozen=True)
class Trials:
    """What a model answers.

    Attributes:
        model: The model.
        example: The trial at the example.
        varied: The trial where every axis has another size; the same object as ``example`` where nothing varies.
        single: The trial at a batch of one, where models like to branch or squeeze, or None.
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
    """Run the model at the example and at another size of every axis.

    Args:
        model: The model, in eval mode.
        axes: The axes that should vary.

    Raises:
        ExportError: The model rejects the example, or another size of an axis that has to vary.
    """
    sizes = {axis.name: axis.size for axis in axes}
    try:
        example = Trial(model.arguments.tensors, _run(model, model.arguments.tensors), sizes)
    except BensembleError:  # about the outputs, and says so
        raise
    except Exception as err:
        raise ExportError(
            f"export_onnx: the model rejects example_inputs, got {one_line(err)}; "
            f"they are {_listing(model, model.arguments.tensors)}."
        ) from err
    varied, accepted = example, []
    for axis in axes:
        found, failure = _vary(model, varied, axis, axis.other_sizes())
        if found is not None:
            varied = found
            accepted.append(axis)
        elif axis.required and failure is not None:
            raise _fixed(model, axis, failure)
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


def _fixed(model: FlatModel, axis: Axis, failure: Exception) -> ExportError:
    index, dim = axis.places[0]
    name = model.arguments.names[index]
    tried = ", ".join(str(size) for size in axis.other_sizes())
    return ExportError(
        f"export_onnx: axis {dim} of '{name}' ({axis.name}) must vary, but the model accepts {axis.size} and not "
        f"{tried}, got {one_line(failure)}; if the size is fixed, pass dynamic_shapes={{'{name}': {{}}}}."
    )


def _listing(model: FlatModel, tensors: Sequence[Tensor]) -> str:
    return ", ".join(
        f"'{name}' {tuple(tensor.shape)} {str(tensor.dtype).removeprefix('torch.')}"
        for name, tensor in zip(model.arguments.names, tensors, strict=True)
    )


def one_line(err: BaseException, most: int = 200) -> str:
    """Type and first line of an error, for messages that wrap it."""
    lines = [line.strip() for line in str(err).splitlines() if line.strip()]
    text = f"{type(err).__name__}: {lines[0]}" if lines else type(err).__name__
    return text if len(text) <= most else text[: most - 3] + "..."
