"""A session: an uncertainty file in ONNX Runtime, its metadata, and answers for batches."""

from __future__ import annotations

import ctypes
import os
import weakref
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, BinaryIO

import numpy as np

from .answers import Answer
from .files import UncertaintyFileError, check_count, check_digest, literal, message, opened
from .inputs import checked_feed, not_finite, numpy_dtype
from .metadata import check_kind, read_metadata

__all__ = ["UncertaintySession"]

#: More threads than any machine has use for; ONNX Runtime would start them.
MOST_THREADS = 1024

#: The sessions of this process.
_sessions: weakref.WeakSet[UncertaintySession] = weakref.WeakSet()


class UncertaintySession:
    """Runs an uncertainty file that :func:`convert.export_onnx` wrote.

    It can be pickled: a path is opened again where it is unpickled, bytes travel along. After a fork the child opens
    the file again at its first call. Both are errors where the file has changed since.

    Args:
        file: Its path, its bytes, or a file object that is open for reading bytes.
        threads: Number of threads of ONNX Runtime, 1 to 1,024; None for its own default.
        providers: Its execution providers by name, the best first, or pairs of a name and options. Those that this
            ONNX Runtime lacks are left out; :attr:`providers` says what it uses.

    Attributes:
        inputs: Dtype and shape of each input by name, in the order of a call; a string is an axis of any size.
        outputs: Names of the arrays in an answer.
        classes: Names of the classes, from the user's metadata ``classes``.
        class_axis: Axis of ``probs`` that holds the classes, None for numbers.
        likelihood: Name and settings of the likelihood, or ``"none"``.
        reference: For each measure its quantiles on the calibration data, at evenly spaced levels from 0 to 1; for
            ``novelty`` on the held-out data of its fit. ``class`` is the most probable class plus a number between 0
            and 1 at random.
        num_data: Number of examples of the calibration data; 0 without calibration.
        counts: Number of examples behind the reference of each measure.
        thresholds: What :meth:`Answer.reject` compares with, by output.
        metadata: Every string of the file.
        name: How messages call the file: its path, where there is one.
        providers: The execution providers that ONNX Runtime uses, the first wherever it can.

    Raises:
        FileNotFoundError: There is no such file.
        UncertaintyFileError: It is damaged, not an uncertainty file, or of a newer version. A file of ``export_onnx``
            is compared with its digest before ONNX Runtime loads it.
        ValueError: ``threads`` is out of range, or ONNX Runtime has none of the providers.

    Example:
        >>> session = convert.runtime.UncertaintySession("sure.onnx")
        >>> answer = session(images.numpy())
    """

    def __init__(
        self,
        file: str | os.PathLike[str] | bytes | BinaryIO,
        *,
        threads: int | None = None,
        providers: str | Sequence[Any] = ("CPUExecutionProvider",),
    ) -> None:
        if threads is not None:
            check_count("UncertaintySession", "threads", threads)
            if threads > MOST_THREADS:
                raise ValueError(f"UncertaintySession: threads must be at most {MOST_THREADS}, got {threads}.")
        self.name, self._file = opened(file)
        self._threads = threads
        self._wanted: list[Any] = _provider_list(providers)
        available = _onnxruntime().get_available_providers()
        if not any(_name(wanted) in available for wanted in self._wanted):
            raise ValueError(
                f"UncertaintySession: providers must name one that this ONNX Runtime has ({', '.join(available)}), got "
                f"{', '.join(map(_name, self._wanted)) or 'none'}; choose one, or install another build of it."
            )
        try:
            self._session = self._open()
            self.metadata: dict[str, str] = dict(self._session.get_modelmeta().custom_metadata_map)
            takes, gives = self._session.get_inputs(), self._session.get_outputs()
            self.inputs = {entry.name: (numpy_dtype(entry.type), tuple(entry.shape)) for entry in takes}
            outputs = {entry.name: tuple(entry.shape) for entry in gives}
        except Exception as err:
            raise UncertaintyFileError(
                f"UncertaintySession: '{self.name}' cannot be loaded as ONNX, it is damaged or something else, got "
                f"{message(err)}; fetch it again."
            ) from err
        check_kind(self.name, self.metadata)
        self.providers: tuple[str, ...] = tuple(self._session.get_providers())
        self.outputs = tuple(outputs)
        self._axes = {name: shape[:1] for name, shape in outputs.items()}
        try:
            told = read_metadata(self.metadata, outputs)
        except (AttributeError, KeyError, OverflowError, RecursionError, TypeError, ValueError) as err:
            raise UncertaintyFileError(
                f"UncertaintySession: the metadata of '{self.name}' is damaged, got {message(err)}; export it again."
            ) from err
        self.likelihood, self.classes, self.class_axis = told.likelihood, told.classes, told.class_axis
        self.reference, self.num_data, self.counts = told.reference, told.num_data, told.counts
        self.thresholds = told.thresholds
        _sessions.add(self)

    def __call__(self, *arrays: np.ndarray, **named: np.ndarray) -> Answer:
        """The outputs for a batch; arrays in the order or by the names of :attr:`inputs`. A batch may be empty.

        An example with NaN or infinity in its inputs gets NaN in every output, an empty prediction set and no label;
        its novelty is that of the strangest inputs. The others keep their answers. The -inf of an additive mask, which
        has nothing above 0, is no such value.

        Raises:
            TypeError: An input is missing, unknown, not an array or of another dtype.
            ValueError: An input has another shape.
            UncertaintyFileError: ONNX Runtime cannot run the file on it.
        """
        feed = checked_feed(self.inputs, arrays, named)
        empty = {self.inputs[name][1][0] for name, array in feed.items() if not array.size}
        if empty:  # not every operator takes an empty batch: one example of zeros is run and left out
            feed = {
                name: array if array.size else np.zeros((1, *array.shape[1:]), array.dtype)
                for name, array in feed.items()
            }
        try:
            values = self._running().run(list(self.outputs), feed)
        except UncertaintyFileError:
            raise
        except Exception as err:
            shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in feed.items())
            raise UncertaintyFileError(
                f"session: ONNX Runtime cannot run '{self.name}' on {shapes}, got {message(err)}; give inputs like "
                "those that it was exported with, or export it again."
            ) from err
        found = dict(zip(self.outputs, values, strict=True))
        for name, array in feed.items():
            rows = not_finite(array)
            if rows.any():
                answers = [output for output in found if not output.startswith("novelty")]
                found |= {output: self._without(output, found[output], name, rows) for output in answers}
        if empty:
            found = {name: value[:0] if empty.issuperset(self._axes[name]) else value for name, value in found.items()}
        return self._answer(found)

    def in_batches(self, size: int, *arrays: np.ndarray, **named: np.ndarray) -> Answer:
        """One answer for many examples, computed ``size`` at a time, so that memory stays bounded.

        Inputs whose first axis is not that of the outputs go into every batch whole.
        """
        check_count("in_batches", "size", size)
        feed = checked_feed(self.inputs, arrays, named)
        axes = {axis for shape in self._axes.values() for axis in shape if isinstance(axis, str)}
        cut = {name for name in feed if axes.issuperset(self.inputs[name][1][:1]) and feed[name].ndim}
        most = max((len(feed[name]) for name in cut), default=1)
        parts = [
            self(**{name: array[start : start + size] if name in cut else array for name, array in feed.items()})
            for start in range(0, max(most, 1), size if cut else 1)
        ]
        return self._answer({name: np.concatenate([part[name] for part in parts]) for name in self.outputs})

    def __repr__(self) -> str:
        takes = ", ".join(f"{name}: {dtype}{list(shape)}" for name, (dtype, shape) in self.inputs.items())
        return f"UncertaintySession('{self.name}', {takes} -> {', '.join(self.outputs)}, {self.likelihood})"

    def __reduce__(self) -> Any:
        file = self._file if isinstance(self._file, bytes) else self._file.absolute()
        return _again, (file, self._threads, self._wanted, self.metadata)

    def _answer(self, arrays: Mapping[str, np.ndarray]) -> Answer:
        return Answer(arrays, self.classes, self.class_axis, self.thresholds)

    def _without(self, output: str, values: np.ndarray, name: str, rows: np.ndarray) -> np.ndarray:
        """An output without an answer for rows of an input; for every row where their first axes are not the same."""
        same = self._axes[output] == self.inputs[name][1][:1] and len(values) == len(rows)
        changed = values.copy()
        changed[rows if same else ...] = np.nan if values.dtype.kind == "f" else 0
        return changed

    def _open(self) -> Any:
        """A session of ONNX Runtime."""
        onnxruntime = _onnxruntime()
        available = onnxruntime.get_available_providers()
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        if self._threads is not None:
            options.intra_op_num_threads = self._threads
        check_digest(self._file)
        providers = [wanted for wanted in self._wanted if _name(wanted) in available]
        source = str(self._file) if isinstance(self._file, Path) else self._file
        return onnxruntime.InferenceSession(source, options, providers=providers, enable_fallback=0)

    def _running(self) -> Any:
        """The session of ONNX Runtime, opened again in a process that was forked."""
        if self._session is None:
            session = self._open()
            _check_same(self.name, self.metadata, session.get_modelmeta().custom_metadata_map)
            self._session = session
        return self._session

    def _leave(self) -> None:
        """In a forked process: keep the session that it was forked with forever, and open another one when needed.

        A fork copies no threads. Running that session crashes, and its destructor waits for its threads without end.
        The same holds for ONNX Runtime as a whole: a child has to end by ``os._exit``, as multiprocessing's do.
        """
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._session))
        self._session = None


def _onnxruntime() -> Any:
    """The package, which the rest of this one works without."""
    try:
        import onnxruntime
    except ImportError as err:
        raise ImportError(
            f"UncertaintySession: needs {err.name}, which is not installed; pip install onnxruntime."
        ) from err
    return onnxruntime


def _provider_list(providers: Any) -> list[Any]:
    """Names, and pairs of a name and options."""
    found = [providers] if isinstance(providers, str) else list(providers) if isinstance(providers, Sequence) else None
    if found is None or not all(
        isinstance(p, str) or (isinstance(p, tuple) and len(p) == 2 and isinstance(p[0], str)) for p in found
    ):
        raise TypeError(
            "UncertaintySession: providers must be a list of names, or of pairs such as ('CPUExecutionProvider', {}), "
            f"got {literal(providers)}."
        )
    return found


def _name(provider: Any) -> str:
    """The name of a provider that may come with options."""
    return str(provider if isinstance(provider, str) else provider[0])


def _again(file: Any, threads: int | None, providers: Sequence[Any], metadata: Mapping[str, str]) -> UncertaintySession:
    """A session from its pickle."""
    session = UncertaintySession(file, threads=threads, providers=providers)
    _check_same(session.name, metadata, session.metadata)
    return session


def _check_same(name: str, before: Mapping[str, str], now: Mapping[str, str]) -> None:
    """Refuse a file that has changed: its metadata holds the digest of the rest."""
    if dict(before) != dict(now):
        raise UncertaintyFileError(
            f"UncertaintySession: '{name}' is not the file that was opened before the process was forked or the "
            "session pickled, got other metadata; open it anew."
        )


def _after_fork() -> None:
    for session in list(_sessions):
        session._leave()


if hasattr(os, "register_at_fork"):  # not on Windows, which does not fork
    os.register_at_fork(after_in_child=_after_fork)
