"""The written file in ONNX Runtime: its outputs compared with the model's, and its latency."""

from __future__ import annotations

import logging
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bensemble.errors import InvalidValueError, VerificationError, one_line

from .edge_cases import check_edges, leaves_padding_out
from .files.measuring import Deviation, error_of
from .files.running import OnnxModel, input_arrays
from .files.sessions import BATCH_SIZES, interleaved, one_thread_session
from .inputs.axes import BATCH, resized
from .inputs.trials import Trial, Trials
from .rounding_errors import MOST, ROUNDING_FACTOR, rounding_errors
from .tracing import quiet

__all__ = ["Agreement", "compare", "latency", "measured", "verified"]

logger = logging.getLogger("bensemble.onnx")

#: Largest |file - model| over the largest |model|, by the lowest precision in the model.
TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 2e-2, torch.bfloat16: 1e-1}

#: Seconds; a batch size whose single run is expected to take longer is not timed.
LONGEST_RUN = 1.0


@dataclass(frozen=True)
class Agreement:
    """How far a file is from its model, over all outputs and trials.

    Attributes:
        max_error: Largest absolute difference.
        relative_error: Largest absolute difference of an output over its largest absolute value.
        tolerance: What the relative error may be; more where the model's own rounding error is large.
    """

    max_error: float
    relative_error: float
    tolerance: float


def verified(path: Path, trials: Trials, names: Sequence[str]) -> Agreement:
    """Run a float file at every trial and compare it with the model; ``names`` are those of the outputs in the file.

    Raises:
        VerificationError: The file does not reproduce the model, or cannot be run.
    """
    model, example = trials.model, trials.example
    for name, expected in zip(names, example.outputs.values(), strict=True):
        if expected.is_floating_point() and expected.isnan().any():
            raise VerificationError(
                f"export_onnx: output '{name}' of the model must not be NaN to be compared, got NaN at example_inputs; "
                "no file was written. verify=False writes it without this check."
            )
    tensors = (*model.parameters(), *model.buffers(), *example.tensors, *example.outputs.values())
    bound = max((TOLERANCES[tensor.dtype] for tensor in tensors if tensor.dtype in TOLERANCES), default=1e-5)

    def rounding(trial: Trial) -> Mapping[str, float]:
        return rounding_errors(model, model.named, trial.tensors, trial.outputs)

    session = _session(path)
    try:
        found = compare(session, trials.different, names, bound, model.scales, rounding, model.slack)
        with quiet(verbose=False):
            check_edges(partial(run, session), trials, names, rounding)
    except VerificationError as err:
        if not leaves_padding_out(model):
            raise
        raise VerificationError(
            f"{err} In eval mode, torch's TransformerEncoder leaves padding out and gives 0 there, which no file does; "
            "make it with enable_nested_tensor=False, or set its use_nested_tensor to False."
        ) from err
    return found


def measured(path: Path, trials: Trials, names: Sequence[str], batches: Iterable[tuple[Tensor, ...]]) -> Deviation:
    """Run a quantised file and measure how far it is from the model.

    The file must run on the trials, with outputs of the model's shapes. The error is that on ``batches``.

    Raises:
        VerificationError: The file cannot be run, gives other shapes, or gives NaN where the model gives numbers.
    """
    session = _session(path)
    for trial in trials.different:
        for name, expected, got in zip(names, trial.outputs.values(), run(session, trial), strict=True):
            error, _ = _difference(name, expected.numpy(), got, 1.0, trial)
            if expected.is_floating_point() and np.isinf(error):
                raise VerificationError(
                    f"export_onnx: output '{name}' of the file must be finite where the model's is, got NaN or "
                    f"infinity at {trial}; no file was written. Export without quantize."
                )
    try:
        return error_of(OnnxModel(path), trials.model, ((tensors,) for tensors in batches))  # one tuple of tensors
    except InvalidValueError as err:
        raise VerificationError(f"export_onnx: the file cannot be compared, {err} No file was written.") from err


def latency(path: Path, trials: Trials) -> dict[int, float]:
    """Median milliseconds of a run by batch size, other axes as in the example; key 0 where there is no batch axis."""
    session, tensors = _session(path), trials.example.tensors
    batch = next((axis for axis in trials.axes if axis.name == BATCH), None)
    if batch is None:
        return {0: _median_ms(session, tensors)}
    found: dict[int, float] = {}
    for size in [size for size in BATCH_SIZES if batch.allows(size)] or [batch.size]:
        if found and max(found.values()) / max(found) * size > LONGEST_RUN * 1e3:
            break
        try:
            found[size] = _median_ms(session, resized(tensors, batch, size))
        except Exception as err:  # the model may reject this size as well
            logger.debug("no latency at batch %d: %s", size, one_line(err))
    return found


def _median_ms(session: Any, tensors: Sequence[Tensor]) -> float:
    run_file = partial(session.run, None, input_arrays(session, tensors))
    return interleaved({"file": run_file}, "file", rounds=3)["file"].ms


def compare(
    session: Any,
    trials: Sequence[Trial],
    names: Sequence[str],
    bound: float,
    scales: Mapping[str, Sequence[str]] | None = None,
    rounding: Callable[[Trial], Mapping[str, float]] | None = None,
    slack: Mapping[str, float] | None = None,
) -> Agreement:
    """Run a file on every trial and compare.

    Args:
        session: An ONNX Runtime session.
        trials: Inputs and outputs of the model.
        names: The names of the outputs in the file, in the order of the trials' outputs.
        bound: Largest relative error; integer and boolean outputs must be equal.
        scales: Outputs whose error is taken relative to the largest value among others, by the names in the trials.
        rounding: The model's own rounding errors in a trial, by output; called where ``bound`` is exceeded.
        slack: For some outputs by how much they may differ in any case.

    Raises:
        VerificationError: An output differs, or ONNX Runtime cannot run the file.
    """
    worst = Agreement(0.0, 0.0, bound)
    for trial in trials:
        for name, (own, expected), got in zip(names, trial.outputs.items(), run(session, trial), strict=True):
            others = (scales or {}).get(own, (own,))
            scale = max(_largest(trial.outputs[other].numpy()) for other in others if other in trial.outputs)
            error, relative = _difference(name, expected.numpy(), got, scale, trial)
            allowed = bound
            if error <= (slack or {}).get(own, 0.0):
                continue
            if bound < relative < np.inf and rounding is not None:
                allowed = max(bound, min(ROUNDING_FACTOR * rounding(trial).get(own, 0.0) / scale, MOST))
            if relative > allowed:
                share = (
                    f"{relative:.1e} of its largest value (allowed {allowed:.0e})" if relative < np.inf else "not equal"
                )
                raise VerificationError(
                    f"export_onnx: output '{name}' of the file differs from the model by {error:.2e}, {share}, at "
                    f"{trial}; no file was written. verify=False writes it without this check."
                )
            worst = Agreement(
                max(worst.max_error, error), max(worst.relative_error, relative), max(worst.tolerance, allowed)
            )
    return worst


def _session(path: Path) -> Any:
    """An ONNX Runtime session on one CPU thread."""
    try:
        return one_thread_session(path)
    except Exception as err:
        raise VerificationError(
            f"export_onnx: ONNX Runtime cannot load the file, got {one_line(err)}; no file was written. Export float32 "
            "weights (model.float()) or another opset; verify=False writes it without this check."
        ) from err


def run(session: Any, trial: Trial) -> list[np.ndarray]:
    """The file's outputs for the inputs of a trial."""
    try:
        return list(session.run(None, input_arrays(session, trial.tensors)))
    except Exception as err:
        name = session.get_inputs()[0].name
        raise VerificationError(
            f"export_onnx: ONNX Runtime cannot run the file at {trial}, got {one_line(err)}; no file was "
            f"written. Name the axes that vary, such as dynamic_shapes={{'{name}': {{1: 'batch'}}}} where axis 1 "
            "counts the examples; verify=False writes it without this check."
        ) from err


def _difference(name: str, expected: np.ndarray, got: np.ndarray, scale: float, trial: Trial) -> tuple[float, float]:
    """Largest absolute difference, and the same over ``scale``."""
    if expected.shape != got.shape or expected.dtype != got.dtype:
        raise VerificationError(
            f"export_onnx: output '{name}' of the file is {got.dtype}{list(got.shape)} and of the model "
            f"{expected.dtype}{list(expected.shape)}, at {trial}; no file was written."
        )
    integer = not np.issubdtype(expected.dtype, np.floating)
    expected, got = expected.astype(np.float64), got.astype(np.float64)
    finite = np.isfinite(expected)
    if not np.array_equal(expected[~finite], got[~finite], equal_nan=True) or not np.isfinite(got[finite]).all():
        return np.inf, np.inf
    error = float(np.max(np.abs(expected[finite] - got[finite]), initial=0.0))
    if integer or not scale:
        return error, np.inf if error else 0.0
    return error, error / scale


def _largest(array: np.ndarray) -> float:
    """The largest absolute finite value, 0 where there is none."""
    return float(np.max(np.abs(array.astype(np.float64)), where=np.isfinite(array), initial=0.0))
