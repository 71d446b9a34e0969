"""The written file in ONNX Runtime: does it give what the model gives."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from bensemble.errors import InvalidValueError, VerificationError

from .files.latency import latency
from .files.measuring import error_of
from .files.running import OnnxModel, feed, one_thread_session
from .inputs.trials import Trial, Trials, one_line
from .rounding import rounding_errors

__all__ = ["Agreement", "compare", "measured", "open_session", "verified"]

#: Largest |file - model| over the largest |model|, by the lowest precision in the model.
TOLERANCES = {torch.float64: 1e-10, torch.float32: 1e-5, torch.float16: 2e-2, torch.bfloat16: 1e-1}

#: Where rounding alone takes the model further, a file may be so many times as far off, never more than a hundredth.
ROUNDINGS, MOST = 10.0, 1e-2


@dataclass(frozen=True)
class Agreement:
    """How far a file is from its model, over all outputs and trials.

    Attributes:
        max_error: Largest absolute difference.
        relative_error: Largest absolute difference of an output over its largest absolute value.
        tolerance: What the relative error may be; more where rounding alone takes the model further.
    """

    max_error: float
    relative_error: float
    tolerance: float


def tolerance(tensors: Iterable[Tensor]) -> float:
    """The bound for a model with these weights, inputs and outputs: that of the lowest precision among them."""
    return max((TOLERANCES[tensor.dtype] for tensor in tensors if tensor.dtype in TOLERANCES), default=1e-5)


def verified(path: Path, trials: Trials, names: Sequence[str]) -> dict[str, Any]:
    """Run a file at every trial, and time it: the fields of the report that only running gives.

    Args:
        path: The file.
        trials: What the model answers.
        names: The names of the outputs in the file.

    Raises:
        VerificationError: The file does not reproduce the model, or cannot be run.
    """
    model, example = trials.model, trials.example
    for name, expected in zip(names, example.outputs.values(), strict=True):
        if expected.is_floating_point() and expected.isnan().any():
            raise VerificationError(
                f"export_onnx: output '{name}' of the model must not be NaN to be compared, got NaN at example_inputs; "
                "no file was written. verify=False writes it all the same."
            )
    bound = tolerance((*model.parameters(), *model.buffers(), *example.tensors, *example.outputs.values()))
    session = open_session(path)
    agreement = compare(
        session,
        trials.different,
        names,
        bound,
        model.scales,
        lambda trial: rounding_errors(model, model.named, trial.tensors, trial.outputs),
    )
    return {**vars(agreement), "latency_ms": latency(session, example.tensors, trials.axes)}


def measured(path: Path, trials: Trials, names: Sequence[str], batches: Iterable[tuple[Tensor, ...]]) -> dict[str, Any]:
    """Run a file that rounds, and say how far it is from the model: the fields of the report that only running gives.

    Args:
        path: The file.
        trials: What the model answers; the file must run on them, and give outputs of the same shapes.
        names: The names of the outputs in the file.
        batches: Inputs for the error.

    Raises:
        VerificationError: The file cannot be run, gives other shapes, or gives NaN where the model gives numbers.
    """
    session = open_session(path)
    for trial in trials.different:
        for name, expected, got in zip(names, trial.outputs.values(), run(session, trial), strict=True):
            error, _ = _difference(name, _array(expected), got, 1.0, trial.sizes)
            if expected.is_floating_point() and np.isinf(error):
                raise VerificationError(
                    f"export_onnx: output '{name}' of the file must be finite where the model's is, got NaN or "
                    f"infinity at {_sizes(trial.sizes)}; no file was written. Export without quantize."
                )
    try:
        found = error_of(OnnxModel(path), lambda *tensors: trials.model(tensors), batches)
    except InvalidValueError as err:
        raise VerificationError(f"export_onnx: the file cannot be compared, {err} No file was written.") from err
    return {**vars(found), "latency_ms": latency(session, trials.example.tensors, trials.axes)}


def open_session(path: Path) -> Any:
    """An ONNX Runtime session on one CPU thread, as silent as it can be.

    Raises:
        VerificationError: It refuses the file.
    """
    try:
        return one_thread_session(path)
    except Exception as err:
        raise VerificationError(
            f"export_onnx: ONNX Runtime cannot load the file, got {one_line(err)}; no file was written. Export float32 "
            "weights (model.float()) or another opset; verify=False writes it all the same."
        ) from err


def compare(
    session: Any,
    trials: Sequence[Trial],
    names: Sequence[str],
    bound: float,
    scales: Mapping[str, Sequence[str]] | None = None,
    rounding: Callable[[Trial], Mapping[str, float]] | None = None,
) -> Agreement:
    """Run a file on every trial and compare.

    Args:
        session: The file.
        trials: What the model was given, and what it gave.
        names: The names of the outputs in the file, in the order of the trials' outputs.
        bound: Largest relative error; integer and boolean outputs must be equal.
        scales: Outputs whose error is taken relative to the largest value among others, by the names in the trials.
        rounding: How far rounding takes the outputs of a trial, by their names; asked where ``bound`` is exceeded.

    Raises:
        VerificationError: An output differs, or ONNX Runtime cannot run the file.
    """
    worst = Agreement(0.0, 0.0, bound)
    for trial in trials:
        found = run(session, trial)
        for name, (own, expected), got in zip(names, trial.outputs.items(), found, strict=True):
            others = [
                _array(trial.outputs[other]) for other in (scales or {}).get(own, (own,)) if other in trial.outputs
            ]
            scale = max(_largest(other) for other in others)
            error, relative = _difference(name, _array(expected), got, scale, trial.sizes)
            allowed = bound
            if bound < relative < np.inf and rounding is not None:
                allowed = max(bound, min(ROUNDINGS * rounding(trial).get(own, 0.0) / scale, MOST))
            if relative > allowed:
                share = (
                    f"{relative:.1e} of its largest value (allowed {allowed:.0e})" if relative < np.inf else "not equal"
                )
                raise VerificationError(
                    f"export_onnx: output '{name}' of the file differs from the model by {error:.2e}, {share}, at "
                    f"{_sizes(trial.sizes)}; no file was written. verify=False writes it all the same."
                )
            worst = Agreement(
                max(worst.max_error, error), max(worst.relative_error, relative), max(worst.tolerance, allowed)
            )
    return worst


def run(session: Any, trial: Trial) -> list[np.ndarray]:
    """The file's outputs for the inputs of a trial.

    Raises:
        VerificationError: ONNX Runtime cannot run the file.
    """
    try:
        return list(session.run(None, feed(session, trial.tensors)))
    except Exception as err:
        raise VerificationError(
            f"export_onnx: ONNX Runtime cannot run the file at {_sizes(trial.sizes)}, got {one_line(err)}; no file was "
            "written. Name the axes that vary with dynamic_shapes; verify=False writes it all the same."
        ) from err


def _difference(
    name: str, expected: np.ndarray, got: np.ndarray, scale: float, sizes: dict[str, int]
) -> tuple[float, float]:
    """Largest absolute difference, and the same over ``scale``."""
    if expected.shape != got.shape or expected.dtype != got.dtype:
        raise VerificationError(
            f"export_onnx: output '{name}' of the file is {got.dtype}{list(got.shape)} and of the model "
            f"{expected.dtype}{list(expected.shape)}, at {_sizes(sizes)}; no file was written."
        )
    if not np.issubdtype(expected.dtype, np.floating):
        error = float(np.max(np.abs(expected.astype(np.float64) - got.astype(np.float64)), initial=0.0))
        return error, float("inf") if error else 0.0
    expected, got = expected.astype(np.float64), got.astype(np.float64)
    finite = np.isfinite(expected)
    if not np.array_equal(expected[~finite], got[~finite], equal_nan=True) or not np.isfinite(got[finite]).all():
        return float("inf"), float("inf")
    error = float(np.max(np.abs(expected[finite] - got[finite]), initial=0.0))
    if not scale:
        return error, float("inf") if error else 0.0
    return error, error / scale


def _largest(array: np.ndarray) -> float:
    """The largest absolute finite value, 0 where there is none."""
    return float(np.max(np.abs(array.astype(np.float64)), where=np.isfinite(array), initial=0.0))


def _array(tensor: Tensor) -> np.ndarray:
    return tensor.detach().numpy()


def _sizes(sizes: dict[str, int]) -> str:
    return ", ".join(f"{name} {size}" for name, size in sizes.items()) or "the example's shapes"
