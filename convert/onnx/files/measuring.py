"""How files are measured, in the same way for every report: bytes, milliseconds and error."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bensemble.errors import InvalidTypeError, InvalidValueError
from bensemble.models.batches import Inputs, batch_size, call
from bensemble.models.outputs import OutputSelector, select_output, tensor_paths
from bensemble.torch_internals import pytree

__all__ = [
    "BATCH_SIZES",
    "Deviation",
    "Timing",
    "checked_metric",
    "error_of",
    "interleaved",
    "resized_batch",
]

#: Batch sizes that are timed, as far as a model takes them.
BATCH_SIZES = (1, 16, 128)


# -- time


@dataclass(frozen=True)
class Timing:
    """One callable over all rounds.

    Attributes:
        ms: Median milliseconds of one run.
        ratio: Median over the rounds of its time over the reference's time in the same round; this holds on a busy
            machine, where milliseconds do not.
    """

    ms: float
    ratio: float


def interleaved(
    runs: Mapping[str, Callable[[], Any]], reference: str, rounds: int = 7, least: float = 0.02
) -> dict[str, Timing]:
    """Time callables of one thread in turn, ``rounds`` times, each for at least ``least`` seconds a round.

    It measures the CPU time of the calling thread, in which a session of ONNX Runtime with one thread runs. Time in
    which other processes run does not count.

    Args:
        runs: What to time, by name. Each is run once before, to warm up.
        reference: The ratios are over the times of this name.
        rounds: How often each is timed.
        least: Seconds; short runs are repeated within a round.
    """
    repeats: dict[str, int] = {}
    for name, run in runs.items():
        run()
        repeats[name] = max(1, round(least / max(_seconds(run, 1), 1e-6)))
    times: dict[str, list[float]] = {name: [] for name in runs}
    for _ in range(rounds):
        for name, run in runs.items():
            times[name].append(_seconds(run, repeats[name]))
    return {
        name: Timing(
            1e3 * statistics.median(taken),
            statistics.median(mine / its for mine, its in zip(taken, times[reference], strict=True)),
        )
        for name, taken in times.items()
    }


def _seconds(run: Callable[[], Any], repeats: int) -> float:
    start = time.thread_time()
    for _ in range(repeats):
        run()
    return max(time.thread_time() - start, 1e-9) / repeats


def resized_batch(inputs: Inputs, size: int) -> Inputs:
    """The inputs with another number of examples: every tensor as long as the batch is repeated or cut along axis 0."""
    now = batch_size(inputs)

    def change(leaf: Any) -> Any:
        if not isinstance(leaf, Tensor) or not leaf.ndim or leaf.shape[0] != now:
            return leaf
        return leaf.index_select(0, torch.arange(size, device=leaf.device) % now)

    changed: Inputs = pytree.tree_map(change, inputs)
    return changed


# -- error


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


# -- metric of the user


def checked_metric(verb: str, value: Any, name: str) -> float:
    """The number that ``evaluate`` returned for a file.

    Raises:
        InvalidTypeError: It is not a number.
        InvalidValueError: It is NaN or infinite.
    """
    try:
        metric = float(value)
    except (TypeError, ValueError) as err:
        raise InvalidTypeError(f"{verb}: evaluate must return a number, got {value!r} for '{name}'.") from err
    if not math.isfinite(metric):
        got = "NaN" if metric != metric else metric
        raise InvalidValueError(f"{verb}: evaluate must return a number, got {got} for '{name}'; look at its data.")
    return metric
