"""The written file on degenerate inputs, where it must not give NaN or something far off if the model does not.

Such inputs cancel and tie. So an output may differ by :data:`MOST` of the largest value that it has there or at the
example, where others say its scale of the largest of theirs; by the model's slack, where outputs are steps; and further
by what rounding does: the model's own rounding error, and how far its outputs move when its inputs move by as little.
Integers are not compared, and no output where the model itself is not finite, or where torch's encoder gives 0 for
padding.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence

import numpy as np
import torch
from torch import Tensor, nn

from bensemble.errors import VerificationError

from .inputs.trials import Trial, Trials
from .rounding_errors import MOST, ROUNDING_FACTOR

__all__ = ["check_edges", "leaves_padding_out"]

logger = logging.getLogger("bensemble.onnx")

#: How far inputs are moved to see what rounding may do, relative to the largest.
NUDGE = 1e-6


def check_edges(
    run_file: Callable[[Trial], Sequence[np.ndarray]],
    trials: Trials,
    names: Sequence[str],
    rounding: Callable[[Trial], Mapping[str, float]],
) -> None:
    """Compare a file with its model on the degenerate trials.

    Raises:
        VerificationError: An output of the file is not finite, or far off, where the model's is finite.
    """
    for trial in trials.degenerate:
        for name, (own, expected), got in zip(names, trial.outputs.items(), run_file(trial), strict=True):
            finite = expected.isfinite()
            if not finite.all():
                logger.info("output '%s' of the model itself is not finite at %s", name, trial)
            if leaves_padding_out(trials.model):
                finite &= expected != 0
            if not expected.is_floating_point() or tuple(got.shape) != tuple(expected.shape):
                continue
            error = _largest(torch.from_numpy(got).double() - expected.double(), finite)
            others = [other for other in trials.model.scales.get(own, (own,)) if other in trial.outputs]
            typical = [there.outputs[other] for other in others for there in (trial, trials.example)]
            scale = max(_largest(values, values.isfinite()) for values in typical)
            if error <= max(MOST * scale, trials.model.slack.get(own, 0.0)):
                continue
            if not error <= ROUNDING_FACTOR * _unsure(trials, trial, own, rounding):
                raise VerificationError(
                    f"export_onnx: output '{name}' of the file differs from the model by {error:.2e}, where the model "
                    f"gives at most {scale:.2e}, at {trial}; no file was written. Look for a division by 0 or a mask "
                    "without entries; verify=False writes it without this check."
                )


def leaves_padding_out(model: nn.Module) -> bool:
    """Whether a model holds an encoder that computes nothing at padding, and gives 0 there, in eval mode."""
    return any(isinstance(part, nn.TransformerEncoder) and part.use_nested_tensor for part in model.modules())


def _unsure(trials: Trials, trial: Trial, output: str, rounding: Callable[[Trial], Mapping[str, float]]) -> float:
    """What rounding may do to an output."""
    moved = trials.moved(trial, NUDGE)
    change = moved[output].double() - trial.outputs[output].double() if output in moved else torch.zeros(1)
    return max(rounding(trial).get(output, 0.0), _largest(change, change.isfinite()))


def _largest(values: Tensor, where: Tensor) -> float:
    """The largest of some absolute values, infinity where one is not a number."""
    values = values[where].double().abs()
    return float(values.nan_to_num(nan=float("inf"), posinf=float("inf")).max()) if values.numel() else 0.0
