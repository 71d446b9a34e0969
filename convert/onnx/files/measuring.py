"""How files are measured: bytes, milliseconds and error, each in one way for every report.

``gzip_size`` counts bytes; ``interleaved`` times callables in rounds, so that a busy machine slows all of them;
``resized_batch`` makes inputs of other batch sizes; ``error_of`` compares the outputs of two models on data.
"""

from __future__ import annotations

import statistics
import time
import zlib
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils._pytree import tree_map

from bensemble.errors import InvalidTypeError, InvalidValueError
from bensemble.models.batches import Inputs, batch_size, call
from bensemble.models.outputs import OutputSelector, select_output, tensor_paths

__all__ = ["BATCH_SIZES", "Error", "Timing", "checked_metric", "error_of", "gzip_size", "interleaved", "resized_batch"]

#: Batch sizes that are timed, as far as a model takes them.
BATCH_SIZES = (1, 16, 128)


def gzip_size(data: bytes, chunk: int = 1 << 24) -> int:
    """Size of the gzip file: a header and trailer of 18 bytes around the deflated data."""
    packer = zlib.compressobj(6, zlib.DEFLATED, -zlib.MAX_WBITS)
    view = memoryview(data)
    packed = sum(len(packer.compress(view[start : start + chunk])) for start in range(0, len(data), chunk))
    return packed + len(packer.flush()) + 18


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

    Measured is the CPU time of the calling thread, which a session of ONNX Runtime with one thread runs in: what other
    processes do in the meantime does not count.

    Args:
        runs: What to time, by name. Each is run once before, to warm up.
        reference: The name whose times the ratios are over.
        rounds: How often everything takes its turn.
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

    changed: Inputs = tree_map(change, inputs)
    return changed


# -- error


@dataclass(frozen=True)
class Error:
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
    found: nn.Module, model: Callable[..., Any], batches: Iterable[Inputs], output: OutputSelector | None = None
) -> Error:
    """Compare the floating outputs of two models that take the same inputs and give the same outputs.

    Args:
        found: Such as :class:`convert.onnx.files.running.OnnxModel`.
        model: What it should compute, in the mode it is in.
        batches: Inputs of both, on the device of ``model``.
        output: Which output of the model counts, where it has more than the other one gives.

    Raises:
        InvalidValueError: There is no batch, the outputs differ in number or shape, or some are NaN.
    """
    total = _Sums()
    for inputs in batches:
        theirs = call(model, inputs)
        wanted = [select_output(theirs, output)] if output is not None else [t for _, t in tensor_paths(theirs)]
        given = [tensor for _, tensor in tensor_paths(call(found, inputs))]
        if [tuple(t.shape) for t in wanted] != [tuple(t.shape) for t in given]:
            raise InvalidValueError(
                f"compare: outputs must have the shapes of the model's {[list(t.shape) for t in wanted]}, "
                f"got {[list(t.shape) for t in given]}; name the output that was exported with output=."
            )
        for a, b in zip(given, wanted, strict=True):
            if b.is_floating_point():
                total.add(a.cpu().double(), b.cpu().double())
    return total.error()


class _Sums:
    """Running sums of a comparison."""

    def __init__(self) -> None:
        self.worst = self.largest = self.squares = self.power = 0.0
        self.rows = self.same = 0

    def add(self, found: Tensor, expected: Tensor) -> None:
        """One output of one batch."""
        if found.isnan().any() or expected.isnan().any():
            raise InvalidValueError("compare: outputs must be numbers, got NaN; look at the data and at the model.")
        difference = (found - expected).abs()
        self.worst = max(self.worst, float(difference.max()) if difference.numel() else 0.0)
        self.largest = max(self.largest, float(expected.abs().max()) if expected.numel() else 0.0)
        self.squares += float(difference.square().sum())
        self.power += float(expected.square().sum())
        if expected.ndim > 1 and expected.shape[-1] > 1:
            self.rows += expected.numel() // expected.shape[-1]
            self.same += int((found.argmax(-1) == expected.argmax(-1)).sum())

    def error(self) -> Error:
        """The result."""
        if not self.power and not self.squares:
            raise InvalidValueError("compare: data must give outputs other than 0, got no batch, or zeros only.")
        relative = self.worst / self.largest if self.largest else float("inf")
        rms = (self.squares / self.power) ** 0.5 if self.power else float("inf")
        return Error(self.worst, relative, rms, self.same / self.rows if self.rows else None)


# -- what a user's function says


def checked_metric(verb: str, value: Any, name: str) -> float:
    """What ``evaluate`` returned for the file of a name, or an error unless it is a number.

    Raises:
        InvalidTypeError: It is no number.
        InvalidValueError: It is NaN.
    """
    try:
        metric = float(value)
    except (TypeError, ValueError) as err:
        raise InvalidTypeError(f"{verb}: evaluate must return a number, got {value!r} for '{name}'.") from err
    if metric != metric:
        raise InvalidValueError(f"{verb}: evaluate must return a number, got NaN for '{name}'; look at its data.")
    return metric
