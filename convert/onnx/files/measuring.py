"""How far the outputs of a file are from those of the model, in the same way for every report."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from bensemble.errors import InvalidValueError
from bensemble.models.batches import Inputs, call
from bensemble.models.outputs import OutputSelector, select_output, tensor_paths

__all__ = ["Deviation", "error_of"]


@dataclass(frozen=True)
class Deviation:
    """How far a model's outputs are from another's, over some data.

    Attributes:
        max_error: Largest absolute difference.
        relative_error: The same over the largest absolute output of the other model.
        rms_error: Root mean square of the difference over that of the other model's output.
        agreement: Share of the rows of the last axis whose largest entry is at the same place, for a classifier the
            share of examples with the same class; None without such outputs.
    """

    max_error: float
    relative_error: float
    rms_error: float
    agreement: float | None


@torch.no_grad()
def error_of(
    found: nn.Module, model: nn.Module, batches: Iterable[Inputs], output: OutputSelector | None = None
) -> Deviation:
    """Compare the floating outputs of two models that take the same inputs and give the same outputs.

    Args:
        found: The model to judge, such as :class:`convert.onnx.files.running.OnnxModel`.
        model: The reference, in its current mode.
        batches: Inputs of both, on the device of ``model``.
        output: The output of the reference to compare, where it has more outputs than ``found``.

    Raises:
        InvalidValueError: There is no batch, the outputs differ in number or shape, or some are NaN.
    """
    worst = largest = squares = power = 0.0
    rows = same = 0
    for inputs in batches:
        theirs = call(model, inputs)
        wanted = [select_output(theirs, output)] if output is not None else [t for _, t in tensor_paths(theirs)]
        given = [tensor for _, tensor in tensor_paths(call(found, inputs))]
        if [tuple(t.shape) for t in wanted] != [tuple(t.shape) for t in given]:
            raise InvalidValueError(
                f"compare: outputs must have the shapes of the model's {[list(t.shape) for t in wanted]}, "
                f"got {[list(t.shape) for t in given]}; name the output that was exported with output=."
            )
        floating = [pair for pair in zip(given, wanted, strict=True) if pair[1].is_floating_point()]
        for a, b in ((a.cpu().double(), b.cpu().double()) for a, b in floating if b.numel()):
            if a.isnan().any() or b.isnan().any():
                raise InvalidValueError("compare: outputs must be numbers, got NaN; look at the data and at the model.")
            worst = max(worst, float((a - b).abs().max()))
            largest = max(largest, float(b.abs().max()))
            squares += float((a - b).square().sum())
            power += float(b.square().sum())
            if b.ndim > 1 and b.shape[-1] > 1:
                rows += b.numel() // b.shape[-1]
                same += int((a.argmax(-1) == b.argmax(-1)).sum())
    if not power and not squares:
        raise InvalidValueError("compare: data must give outputs other than 0, got no batch, or zeros only.")
    relative = worst / largest if largest else float("inf")
    rms = (squares / power) ** 0.5 if power else float("inf")
    return Deviation(worst, relative, rms, same / rows if rows else None)
