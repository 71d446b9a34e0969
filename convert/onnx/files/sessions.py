"""ONNX files in ONNX Runtime, run and timed with numpy arrays; torch is not needed."""

from __future__ import annotations

import os
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from bensemble.errors import InvalidValueError, needs_extra, shown

from ...runtime.files import check_digest

__all__ = ["BATCH_SIZES", "OnnxFile", "Timing", "interleaved", "latencies", "one_thread_session", "resized"]

#: Batch sizes that are timed, as far as a model takes them.
BATCH_SIZES = (1, 16, 128)


def one_thread_session(path: str | os.PathLike[str]) -> Any:
    """An ONNX Runtime session on one CPU thread that prints nothing below a fatal error.

    It raises what ONNX Runtime raises, and UncertaintyFileError where the digest in a file does not match its bytes.
    """
    with needs_extra("OnnxModel", "onnx"):
        import onnxruntime  # not needed to export without verification

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    check_digest(path)
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"], enable_fallback=0)


class OnnxFile:
    """An ONNX file on one CPU thread, called with numpy arrays.

    Raises:
        InvalidValueError: ONNX Runtime cannot load it, or it has other bytes than ``export_onnx`` wrote.
    """

    def __init__(self, path: str | os.PathLike[str]) -> None:
        self.path = str(path)
        try:
            if not Path(path).is_file():
                raise FileNotFoundError("there is no such file")
            self.session = one_thread_session(path)
            self.input_names = [entry.name for entry in self.session.get_inputs()]
            self.output_names = [entry.name for entry in self.session.get_outputs()]
        except ImportError:
            raise
        except Exception as err:
            raise InvalidValueError(
                f"OnnxModel: ONNX Runtime cannot load '{self.path}', it is damaged or something else, got "
                f"{shown(err, 200)}; write it again."
            ) from err

    def feed(self, arrays: Mapping[str, np.ndarray], what: str = "") -> dict[str, np.ndarray]:
        """Arrays by input name: by their keys where they are the file's names, else by order; ``what`` says them."""
        if set(self.input_names) <= set(arrays):
            return {name: arrays[name] for name in self.input_names}
        if len(arrays) != len(self.input_names):
            raise InvalidValueError(
                f"OnnxModel: '{self.path}' takes {len(self.input_names)} inputs ({', '.join(self.input_names)}), "
                f"got {what or ', '.join(arrays)}."
            )
        return dict(zip(self.input_names, arrays.values(), strict=True))

    def run(self, arrays: Mapping[str, np.ndarray], what: str = "") -> dict[str, np.ndarray]:
        """All outputs by name."""
        given = self.feed(arrays, what)
        try:
            return dict(zip(self.output_names, self.session.run(None, given), strict=True))
        except Exception as err:
            what = what or ", ".join(f"{name} {list(array.shape)}" for name, array in given.items())
            raise InvalidValueError(
                f"OnnxModel: '{self.path}' rejects the inputs, got {what} ({shown(err, 200)}); "
                "give what the model was exported with."
            ) from err


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


def latencies(
    files: Mapping[str, OnnxFile], arrays: Mapping[str, np.ndarray], batch_sizes: Any, rounds: int, what: str = ""
) -> dict[str, dict[int, Timing]]:
    """Timings by file and batch size, at the sizes that the first file takes; the given batch where it takes none."""
    reference, first = next(iter(files.items()))
    batches = {size: resized(arrays, size) for size in batch_sizes}
    batches = {size: batch for size, batch in batches.items() if _takes(first, batch)} or {
        _length(arrays): dict(arrays)
    }
    found: dict[str, dict[int, Timing]] = {name: {} for name in files}
    for size, batch in batches.items():
        for file in files.values():
            file.run(batch, what)  # raises with a readable message where a file rejects the batch
        runs = {name: partial(file.session.run, None, file.feed(batch)) for name, file in files.items()}
        for name, timing in interleaved(runs, reference, rounds).items():
            found[name][size] = timing
    return found


def resized(arrays: Mapping[str, np.ndarray], size: int) -> dict[str, np.ndarray]:
    """The arrays with another number of examples: each as long as the batch is repeated or cut along axis 0."""
    now = _length(arrays)
    return {
        name: array.take(np.arange(size) % now, axis=0) if array.ndim and len(array) == now else array
        for name, array in arrays.items()
    }


def _length(arrays: Mapping[str, np.ndarray]) -> int:
    """Axis 0 of the first array that has axes."""
    return next((len(array) for array in arrays.values() if array.ndim), 1)


def _takes(file: OnnxFile, arrays: Mapping[str, np.ndarray]) -> bool:
    try:
        file.run(arrays)
    except InvalidValueError:
        return False
    return True
