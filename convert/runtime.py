"""Uncertainty files in production: one module on numpy, ONNX Runtime and the standard library, without torch.

    session = UncertaintySession("sure.onnx")
    answer = session(images)  # answer.probs, answer.entropy, answer.mutual_information
    monitor = Monitor(session)
    monitor.update(answer)
    print(monitor.verdict())

This file may be copied out of the package and used by itself.
"""

from __future__ import annotations

import hashlib
import json
import math
import os
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np

__all__ = ["Answer", "Monitor", "UncertaintyFileError", "UncertaintySession", "Verdict"]

#: Newest version of the ``bensemble.*`` metadata that this module reads.
SCHEMA = 1

#: Outputs that a monitor compares with their reference, where the file has one.
MEASURES = ("entropy", "mutual_information", "std", "novelty")

#: Quantile levels of the reference that bound the bins of a monitor.
EDGES = (0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7, 0.8, 0.9, 0.95, 0.99)

NUMPY_TYPES = {"float": "float32", "double": "float64"}

#: How a file of ``export_onnx`` begins: a metadata entry as protobuf writes it, up to its value, the 64 digits of the
#: digest of all bytes that follow. A tool that rewrites the file moves the entry to the end.
DIGEST_KEY = "bensemble.sha256"
DIGEST_HEAD = b"\x72\x54\x0a\x10" + DIGEST_KEY.encode() + b"\x12\x40"


class UncertaintyFileError(ValueError):
    """This module cannot read the file as an uncertainty file."""


class Answer(Mapping[str, np.ndarray]):
    """The outputs of a file for a batch: arrays as attributes, under the names of the file's outputs.

    Attributes:
        classes: Names of the classes, empty where the file has none.
        class_axis: Axis of ``probs`` and ``prediction_set`` that holds the classes, None for numbers.
    """

    __slots__ = ("_arrays", "class_axis", "classes")

    _arrays: dict[str, np.ndarray]
    classes: tuple[str, ...]
    class_axis: int | None

    def __init__(
        self, arrays: Mapping[str, np.ndarray], classes: tuple[str, ...] = (), class_axis: int | None = None
    ) -> None:
        for name, value in (("_arrays", dict(arrays)), ("classes", classes), ("class_axis", class_axis)):
            object.__setattr__(self, name, value)

    def labels(self) -> np.ndarray:
        """The most probable class of each example: its name, or its index where the file has no class names.

        An example whose probabilities are NaN has no label: then the labels are objects, and this one is None.
        """
        if self.class_axis is None or "probs" not in self or self.class_axis >= self.probs.ndim:
            raise ValueError(f"labels: an answer with {', '.join(self)} chooses no class; only classifiers do.")
        best, none = self.probs.argmax(self.class_axis), ~np.isfinite(self.probs).all(self.class_axis)
        names = np.asarray(self._class_names("labels", self.probs))[best] if self.classes else best
        return np.array(np.where(none, None, names)) if none.any() else names

    def sets(self) -> list[Any]:
        """The prediction set of each example as a list of class names or indices."""
        if "prediction_set" not in self or self.class_axis is None:
            if "lower" in self:
                raise ValueError("sets: the file is of a regression, which has intervals; call interval().")
            raise ValueError("sets: the file holds no conformal threshold; export it with calibration=.")
        names = self._class_names("sets", self["prediction_set"])
        return _names(np.moveaxis(self["prediction_set"], self.class_axis, -1), names)

    def interval(self) -> tuple[np.ndarray, np.ndarray]:
        """Lower and upper end of the conformal interval of a regression."""
        if "lower" not in self or "upper" not in self:
            raise ValueError("interval: the file holds no conformal interval; export a regression with calibration=.")
        return self["lower"], self["upper"]

    def _class_names(self, verb: str, array: np.ndarray) -> Sequence[Any]:
        """The class names along the class axis of an output; indices where the file has no names."""
        count = array.shape[self.class_axis] if self.class_axis is not None and self.class_axis < array.ndim else 0
        if self.classes and len(self.classes) != count:
            raise ValueError(f"{verb}: the file names {len(self.classes)} classes, got {count} in its outputs.")
        return self.classes or range(count)

    def __getattr__(self, name: str) -> np.ndarray:
        if name in Answer.__slots__ or name not in self._arrays:
            raise AttributeError(f"answer has no {name!r}; it has {', '.join(map(repr, self._arrays))}.")
        return self._arrays[name]

    def __setattr__(self, name: str, value: Any) -> None:
        raise AttributeError(f"answer is frozen, {name!r} cannot be set.")

    def __getitem__(self, name: str) -> np.ndarray:
        return self._arrays[name]

    def __iter__(self) -> Any:
        return iter(self._arrays)

    def __len__(self) -> int:
        return len(self._arrays)

    def __reduce__(self) -> Any:
        return Answer, (self._arrays, self.classes, self.class_axis)

    def __repr__(self) -> str:
        lines = [f"Answer: {len(next(iter(self._arrays.values())))} examples"]
        for name, array in self._arrays.items():
            shown = f"{array.min():.4g} .. {array.mean():.4g} .. {array.max():.4g}" if array.size else "empty"
            lines.append(f"  {name:<19}{array.shape!s:<18}{shown}")
        return "\n".join(lines)


class UncertaintySession:
    """Runs an uncertainty file that :func:`convert.export_onnx` wrote.

    Args:
        path: The file.
        threads: Number of threads of ONNX Runtime; None for its own default.
        providers: Its execution providers.

    Attributes:
        inputs: Dtype and shape of each input by name, in the order of a call; a string is an axis of any size.
        outputs: Names of the arrays in an answer.
        classes: Names of the classes, from the user's metadata ``classes``.
        likelihood: Name and settings of the likelihood, or ``"none"``.
        reference: For each measure its quantiles on the calibration data, at evenly spaced levels from 0 to 1; for
            ``novelty`` on the held-out data of its fit.
        num_data: Number of examples of the calibration data; 0 without calibration.
        counts: Number of examples behind the reference of each measure.
        metadata: Every string of the file.

    Raises:
        FileNotFoundError: There is no such file.
        UncertaintyFileError: It is damaged, not an uncertainty file, or of a newer version. A file of ``export_onnx``
            is compared with its digest before ONNX Runtime loads it.
    """

    def __init__(
        self,
        path: str | os.PathLike[str],
        *,
        threads: int | None = None,
        providers: Sequence[str] = ("CPUExecutionProvider",),
    ) -> None:
        if not isinstance(path, (str, os.PathLike)):
            raise TypeError(f"UncertaintySession: path must be a string or a Path, got {type(path).__name__}.")
        self.path = Path(path)
        if not self.path.is_file():
            raise FileNotFoundError(f"UncertaintySession: there is no file '{self.path}'; check the path.")
        try:
            import onnxruntime  # the rest of this module works without
        except ImportError as err:
            raise ImportError(
                f"UncertaintySession: needs {err.name}, which is not installed; pip install onnxruntime."
            ) from err
        options = onnxruntime.SessionOptions()
        options.log_severity_level = 4
        if threads is not None:
            options.intra_op_num_threads = threads
        try:
            check_digest(self.path)
            self._session = onnxruntime.InferenceSession(
                str(self.path),
                options,
                providers=[providers] if isinstance(providers, str) else list(providers),
                enable_fallback=0,
            )
            self.metadata: dict[str, str] = dict(self._session.get_modelmeta().custom_metadata_map)
            self.inputs = {entry.name: (_dtype(entry.type), tuple(entry.shape)) for entry in self._session.get_inputs()}
            outputs = {entry.name: tuple(entry.shape) for entry in self._session.get_outputs()}
        except Exception as err:
            raise UncertaintyFileError(
                f"UncertaintySession: '{self.path}' cannot be loaded as ONNX, it is damaged or something else, got "
                f"{_message(err)}; fetch it again."
            ) from err
        self._check_metadata()
        self.outputs = tuple(outputs)
        self._axes = {name: shape[:1] for name, shape in outputs.items()}
        try:
            self._read_metadata(outputs)
        except (AttributeError, KeyError, OverflowError, RecursionError, TypeError, ValueError) as err:
            raise UncertaintyFileError(
                f"UncertaintySession: the metadata of '{self.path}' is damaged, got {_message(err)}; export it again."
            ) from err

    def __call__(self, *arrays: np.ndarray, **named: np.ndarray) -> Answer:
        """The outputs for a batch; arrays in the order or by the names of :attr:`inputs`.

        An example with NaN or infinity in its inputs gets NaN in every output, an empty prediction set and no label;
        its novelty is that of the strangest inputs. The others keep their answers. The -inf of an additive mask, which
        has nothing above 0, is no such value.

        Raises:
            TypeError: An input is missing, unknown, not an array or of another dtype.
            ValueError: An input has another shape.
            UncertaintyFileError: ONNX Runtime cannot run the file on it.
        """
        feed = self._feed(arrays, named)
        try:
            values = self._session.run(list(self.outputs), feed)
        except Exception as err:
            shapes = ", ".join(f"{name} {list(array.shape)}" for name, array in feed.items())
            raise UncertaintyFileError(
                f"session: ONNX Runtime cannot run '{self.path}' on {shapes}, got {_message(err)}; give inputs like "
                "those that it was exported with, or export it again."
            ) from err
        found = dict(zip(self.outputs, values, strict=True))
        for name, array in feed.items():
            rows = _not_finite(array)
            if rows.any():
                answers = [output for output in found if not output.startswith("novelty")]
                found |= {output: self._without(output, found[output], name, rows) for output in answers}
        return Answer(found, self.classes, self._class_axis)

    def in_batches(self, size: int, *arrays: np.ndarray, **named: np.ndarray) -> Answer:
        """One answer for many examples, computed ``size`` at a time, so that memory stays bounded."""
        _check_count("in_batches", "size", size)
        feed = self._feed(arrays, named)
        most = max(len(array) for array in feed.values())
        parts = [
            self(**{name: array[start : start + size] for name, array in feed.items()})
            for start in range(0, most, size)
        ]
        joined = {name: np.concatenate([part[name] for part in parts]) for name in self.outputs}
        return Answer(joined, self.classes, self._class_axis)

    def __repr__(self) -> str:
        takes = ", ".join(f"{name}: {dtype}{list(shape)}" for name, (dtype, shape) in self.inputs.items())
        return f"UncertaintySession('{self.path}', {takes} -> {', '.join(self.outputs)}, {self.likelihood})"

    def _without(self, output: str, values: np.ndarray, name: str, rows: np.ndarray) -> np.ndarray:
        """An output without an answer for rows of an input; for every row where their first axes are not the same."""
        same = self._axes[output] == self.inputs[name][1][:1] and len(values) == len(rows)
        changed = values.copy()
        changed[rows if same else ...] = np.nan if values.dtype.kind == "f" else 0
        return changed

    def _check_metadata(self) -> None:
        schema, outputs = self.metadata.get("bensemble.schema"), self.metadata.get("bensemble.outputs")
        if schema is None or outputs is None:
            raise UncertaintyFileError(
                f"UncertaintySession: '{self.path}' is ONNX without bensemble's metadata; write it with "
                "export_onnx(..., outputs='uncertainty'), or run it with onnxruntime itself."
            )
        if schema not in map(str, range(1, SCHEMA + 1)):
            raise UncertaintyFileError(
                f"UncertaintySession: '{self.path}' must be of schema {SCHEMA} or older, got {_literal(schema)}; "
                "update this module."
            )
        if outputs != "uncertainty":
            raise UncertaintyFileError(
                f"UncertaintySession: '{self.path}' must hold uncertainty, got a file of outputs="
                f"{_literal(outputs)}; write it with export_onnx(..., outputs='uncertainty')."
            )

    def _read_metadata(self, outputs: Mapping[str, Sequence[Any]]) -> None:
        """Read the metadata and check every field: the file may come from any source."""
        self.likelihood = self.metadata["bensemble.likelihood"]
        self.classes = class_names(self.metadata.get("classes", ""))
        axis = self.metadata.get("bensemble.class_axis")
        self._class_axis = None if axis is None else int(axis)
        shape = outputs.get("probs", ())
        if self._class_axis is not None and not 0 < self._class_axis <= len(shape):  # Bernoulli's is one more
            raise ValueError(f"class axis {self._class_axis} of {len(shape)} axes")
        found = json.loads(self.metadata.get("bensemble.reference", "{}"))
        self.reference = {str(name): _checked_quantiles(name, values) for name, values in found.items()}
        num_data = json.loads(self.metadata.get("bensemble.calibration", "{}")).get("num_data", 0)
        terms = int(self.metadata.get("bensemble.terms", "1"))
        if type(num_data) is not int or not 0 <= num_data < 2**53 or terms < 1:
            raise ValueError(f"{num_data!r} calibration terms, {terms} for each example")
        self.num_data = num_data // terms
        self.counts = dict.fromkeys(self.reference, self.num_data)
        novelty = json.loads(self.metadata.get("bensemble.novelty", "{}"))
        if novelty:
            self.reference["novelty"] = _checked_quantiles("novelty", novelty["quantiles"])
            if type(novelty["num_data"]) is not int or not 0 < novelty["num_data"] < 2**53:
                raise ValueError(f"{novelty['num_data']!r} held-out terms of the novelty")
            self.counts["novelty"] = novelty["num_data"] // terms

    def _feed(self, arrays: Sequence[Any], named: Mapping[str, Any]) -> dict[str, np.ndarray]:
        """The inputs by name, checked."""
        names = list(self.inputs)
        if len(arrays) > len(names):
            raise TypeError(f"session: takes {len(names)} inputs ({', '.join(names)}), got {len(arrays)}.")
        feed = dict(zip(names, arrays, strict=False))
        twice, unknown = sorted(set(feed) & set(named)), sorted(set(named) - set(names))
        missing = [name for name in names if name not in feed and name not in named]
        for fault, found in (("given twice", twice), ("unknown", unknown), ("missing", missing)):
            if found:
                raise TypeError(f"session: input '{found[0]}' is {fault}; the file takes {', '.join(names)}.")
        feed.update(named)
        sizes: dict[str, tuple[int, str]] = {}
        for name, array in feed.items():
            dtype, shape = self.inputs[name]
            if not isinstance(array, np.ndarray) or array.dtype != dtype:
                got = f"an array of {array.dtype}" if isinstance(array, np.ndarray) else type(array).__name__
                raise TypeError(
                    f"session: '{name}' must be a numpy array of {dtype}, got {got}; "
                    f"use numpy.asarray({name}, dtype='{dtype}')."
                )
            fits = len(shape) == array.ndim and all(
                isinstance(want, str) or want is None or want == size
                for want, size in zip(shape, array.shape, strict=True)
            )
            if not fits or not array.size:
                raise ValueError(
                    f"session: '{name}' must have the shape {_shape_text(shape)} and at least one entry, "
                    f"got {array.shape}."
                )
            for want, size in zip(shape, array.shape, strict=True):
                first, of = sizes.setdefault(str(want), (size, name))
                if isinstance(want, str) and first != size:
                    raise ValueError(f"session: '{name}' and '{of}' must agree in {want}, got {size} and {first}.")
        return feed


@dataclass(frozen=True)
class Verdict:
    """The result of a monitor.

    Attributes:
        drifted: Whether the evidence is at least -log(false_alarm_rate).
        evidence: Logarithm of the largest e-value times its share of the false-alarm rate.
        false_alarm_rate: Largest probability of a false alarm over the whole stream, for any number of verdicts.
        measure: The output with the largest evidence.
        since: The first example that this evidence counts.
        seen: Number of examples.
        share_high: Share of the examples since then above the 0.9-quantile of the calibration data.
        expected_high: That share without drift, about 0.1.
    """

    drifted: bool
    evidence: float
    false_alarm_rate: float
    measure: str
    since: int
    seen: int
    share_high: float
    expected_high: float

    def __str__(self) -> str:
        state = f"drift in {self.measure} since example {self.since}" if self.drifted else "no drift"
        return (
            f"{state}, {self.seen} examples seen: evidence {self.evidence:.1f}, alarm from "
            f"{-math.log(self.false_alarm_rate):.1f} on (false alarms at most {self.false_alarm_rate:g}); "
            f"{self.share_high:.0%} have a high {self.measure}, {self.expected_high:.0%} expected"
        )


class Monitor:
    r"""Compares live uncertainties with the reference in the file; its false-alarm rate holds for the whole stream.

    It counts how many examples fall between quantiles of the calibration data. If live data comes from where the n
    calibration examples came from, the probabilities of those bins are Dirichlet(a) with :math:`\sum a = n + 1`
    (spacings of order statistics), and counts c have the Dirichlet-multinomial probability DM(c; a). Then the e-value

    .. math:: M(c) = DM(c; b) / DM(c; a), \qquad b_j = 1/2,

    is a martingale of mean 1. The probability that it ever reaches 1/r is at most r (Ville's inequality), so a verdict
    may be asked for at any time and any number of times (Lindon & Malek 2022, "Anytime-Valid Inference for Multinomial
    Count Data"; here the null is a Dirichlet, because n is finite). To detect a late drift, M is also computed from the
    start of every ``window``: start j has the share 1/2 (j = 0) or 1/(2j(j + 1)) of r, each measure an equal part of it
    (union bound).

    This assumes examples that are independent of each other and of the calibration data. The terms of one example
    (tokens, pixels) depend on each other, so only one of them counts.

    Args:
        session: The file's session, or the path of the file.
        false_alarm_rate: The bound r.
        window: Number of examples between two starts; each start keeps a row of counts.

    Raises:
        TypeError: ``session`` is something else.
        ValueError: The file has no reference distribution, or one that does not vary; an argument out of range.
    """

    def __init__(
        self,
        session: UncertaintySession | str | os.PathLike[str],
        *,
        false_alarm_rate: float = 0.01,
        window: int = 1000,
    ) -> None:
        if isinstance(session, (str, os.PathLike)):
            session = UncertaintySession(session)
        if not isinstance(getattr(session, "counts", None), Mapping):
            raise TypeError(
                f"Monitor: session must be an UncertaintySession or the path of a file, got {type(session).__name__}."
            )
        if not isinstance(false_alarm_rate, (int, float)) or not 0 < false_alarm_rate < 1:
            raise ValueError(f"Monitor: false_alarm_rate must be between 0 and 1, got {false_alarm_rate!r}.")
        _check_count("Monitor", "window", window)
        watched = [name for name in MEASURES if session.counts.get(name) and name in session.outputs]
        if not watched:
            raise ValueError(
                f"Monitor: '{session.path}' must hold a reference distribution, got none; export it with "
                "calibration=bensemble.calibrate(...) or novelty=bensemble.fit_novelty(...)."
            )
        bins = {name: _bins(session.reference[name], session.counts[name]) for name in watched}
        self._bins = {name: found for name, found in bins.items() if found is not None}
        if not self._bins:
            raise ValueError(f"Monitor: the reference of {' and '.join(watched)} must vary, got one value everywhere.")
        self.false_alarm_rate, self.window = float(false_alarm_rate), window
        self._counts = np.zeros((0, len(self._bins), len(EDGES) + 1), dtype=np.int64)
        self._open = 0  # examples in the last row, of the worker that filled it most

    @property
    def seen(self) -> int:
        """Number of examples so far, of all workers."""
        return int(self._counts[:, 0].sum())

    def update(self, answers: Mapping[str, Any] | Iterable[Mapping[str, Any]]) -> None:
        """Count the examples of an answer, or of several; a mapping with arrays of its outputs is one too.

        Raises:
            TypeError: It is no answer.
            ValueError: An uncertainty is missing or not finite; that answer is not counted.
        """
        several = [answers] if isinstance(answers, Mapping) or not isinstance(answers, Iterable) else answers
        for answer in several:
            if not isinstance(answer, Mapping):
                raise TypeError(
                    f"update: answers must be what the session returns, or several of them, got "
                    f"{type(answers).__name__}; call monitor.update(session(inputs))."
                )
            places = [np.searchsorted(edges, self._terms(name, answer)) for name, (edges, _) in self._bins.items()]
            start, total = 0, len(places[0])
            if any(len(found) != total for found in places):
                raise ValueError(
                    f"update: an answer must have {' and '.join(self._bins)} for each example, got "
                    f"{', '.join(str(len(found)) for found in places)}."
                )
            while start < total:
                if not len(self._counts) or self._open >= self.window:
                    self._counts = np.concatenate(
                        [self._counts, np.zeros_like(self._counts, shape=(1, *self._counts.shape[1:]))]
                    )
                    self._open = 0
                stop = min(total, start + self.window - self._open)
                for measure, found in enumerate(places):
                    self._counts[-1, measure] += np.bincount(found[start:stop], minlength=len(EDGES) + 1)
                self._open += stop - start
                start = stop

    def merge(self, other: Monitor) -> Monitor:
        """The monitor of both streams: the counts are added, window by window.

        Raises:
            ValueError: The other monitor has another reference, false-alarm rate or window.
        """
        if not isinstance(other, Monitor) or self._settings() != other._settings():
            raise ValueError("merge: other must be a Monitor of the same file, false_alarm_rate and window.")
        longer, shorter = (self, other) if len(self._counts) >= len(other._counts) else (other, self)
        merged = Monitor.from_json(longer.to_json())
        merged._counts[: len(shorter._counts)] += shorter._counts
        if len(shorter._counts) == len(longer._counts):
            merged._open = max(self._open, other._open)
        return merged

    def verdict(self) -> Verdict:
        """Whether the stream has drifted; the class describes the guarantee."""
        since = self._counts[::-1].cumsum(0)[::-1]  # counts from each start on
        if not len(since):
            since = np.zeros_like(self._counts, shape=(1, *self._counts.shape[1:]))
        starts = np.arange(len(since))
        shares = np.where(starts == 0, 0.5, 0.5 / np.maximum(starts * (starts + 1), 1)) / len(self._bins)
        nulls = [null for _, null in self._bins.values()]
        evidence = (
            np.stack([_log_e_values(since[:, m], null) for m, null in enumerate(nulls)], 1) + np.log(shares)[:, None]
        )
        start, measure = np.unravel_index(evidence.argmax(), evidence.shape)
        counts, null = since[start, measure], nulls[measure]
        high = EDGES.index(0.9) + 1
        return Verdict(
            drifted=bool(evidence.max() >= -math.log(self.false_alarm_rate)),
            evidence=float(evidence.max()),
            false_alarm_rate=self.false_alarm_rate,
            measure=list(self._bins)[measure],
            since=int(self._counts[:start, 0].sum()),
            seen=self.seen,
            share_high=float(counts[high:].sum() / max(counts.sum(), 1)),
            expected_high=float(null[high:].sum() / null.sum()),
        )

    def to_json(self) -> str:
        """The state of the monitor as JSON text."""
        state = {"version": SCHEMA, "open": self._open, "counts": self._counts.tolist()}
        return json.dumps({**state, **self._settings()})

    @classmethod
    def from_json(cls, text: str) -> Monitor:
        """A monitor from the text of :meth:`to_json`.

        Raises:
            ValueError: The text is not from :meth:`to_json`, or of a newer version.
        """
        try:
            state, monitor = json.loads(text), object.__new__(cls)
            version = state["version"]
            if version == SCHEMA:
                monitor._restore(state)
        except (AttributeError, KeyError, OverflowError, RecursionError, TypeError, ValueError) as err:
            raise ValueError(
                f"from_json: text must be what Monitor.to_json wrote, got {_literal(str(text)[:60])} ({_message(err)})."
            ) from err
        if version != SCHEMA:
            raise ValueError(f"from_json: version must be {SCHEMA}, got {_literal(version)}; update bensemble.")
        return monitor

    def _restore(self, state: Mapping[str, Any]) -> None:
        """Set the state from :meth:`to_json`, with every field checked."""
        self.false_alarm_rate, self.window, self._open = state["false_alarm_rate"], state["window"], state["open"]
        if type(self.false_alarm_rate) is not float or not 0 < self.false_alarm_rate < 1:
            raise ValueError("false_alarm_rate")
        _check_count("from_json", "window", self.window)
        if type(self._open) is not int or not 0 <= self._open <= self.window:
            raise ValueError("open")
        self._bins = {}
        for name, (edges, null) in state["bins"].items():
            self._bins[name] = np.array(edges, dtype=float), np.array(null, dtype=float)
            shapes = {tuple(array.shape) for array in self._bins[name]}
            if name not in MEASURES or shapes != {(len(EDGES),), (len(EDGES) + 1,)}:
                raise ValueError("bins")
            edges, null = self._bins[name]
            if np.isnan(edges).any() or (edges[1:] < edges[:-1]).any() or not ((null >= 0) & (null < 2**53)).all():
                raise ValueError("bins")
        if not self._bins or not any((null > 0).any() for _, null in self._bins.values()):
            raise ValueError("no bins")
        self._counts = np.array(state["counts"], dtype=np.int64).reshape(-1, len(self._bins), len(EDGES) + 1)
        if (self._counts < 0).any() or (self._counts > 2**53).any():
            raise ValueError("counts")

    def _settings(self) -> dict[str, Any]:
        bins = {name: (edges.tolist(), null.tolist()) for name, (edges, null) in self._bins.items()}
        return {"false_alarm_rate": self.false_alarm_rate, "window": self.window, "bins": bins}

    def _terms(self, name: str, answer: Mapping[str, Any]) -> np.ndarray:
        """One term of each example; which one changes from example to example."""
        if name not in answer:
            raise ValueError(f"update: an answer must have '{name}', got {', '.join(answer)}.")
        try:
            array = np.atleast_1d(np.asarray(answer[name], dtype=np.float64))
        except (TypeError, ValueError) as err:
            raise TypeError(f"update: '{name}' must be an array of numbers, got {_message(err)}.") from err
        terms = array.reshape(len(array), -1)
        values = terms[np.arange(len(terms)), (self.seen + np.arange(len(terms))) % terms.shape[1]]
        broken = np.count_nonzero(~np.isfinite(values))
        if broken:
            raise ValueError(f"update: '{name}' must be finite, got {broken} of {len(values)} values that are not.")
        return values


def _bins(quantiles: Sequence[float], num_data: int) -> tuple[np.ndarray, np.ndarray] | None:
    """Edges of the bins and their Dirichlet parameters: the q-quantile of n values is the 1 + q (n - 1)-th smallest.

    A level is used where the reference rises on both sides: for a value that occurs often, the share below it is not
    known exactly. The bin of another level is empty, with the edge of the level before. None where no level is used.
    """
    steps = len(quantiles) - 1
    edges, ranks = [-math.inf], [0.0]
    for level in EDGES:
        i = round(level * steps)
        rises = 0 < i < steps and quantiles[i - 1] < quantiles[i] < quantiles[i + 1]
        edges.append(quantiles[i] if rises else edges[-1])
        ranks.append(1 + level * (num_data - 1) if rises else ranks[-1])
    return None if edges[-1] == -math.inf else (np.array(edges[1:]), np.diff([*ranks, num_data + 1.0]))


def _log_e_values(counts: np.ndarray, null: np.ndarray) -> np.ndarray:
    """The logarithm of DM(c; 1/2) / DM(c; a) for each row of counts."""
    used = null > 0
    prior = np.full(used.sum(), 0.5)
    return _log_marginal(counts[:, used], prior) - _log_marginal(counts[:, used], null[used])


def _log_marginal(counts: np.ndarray, prior: np.ndarray) -> np.ndarray:
    """Log probability of the counted examples, in one given order, under a Dirichlet prior of the bins."""
    log_gamma = np.vectorize(math.lgamma, otypes=[float])
    total = log_gamma(prior.sum()) - log_gamma(prior.sum() + counts.sum(-1))
    return total + (log_gamma(counts + prior) - log_gamma(prior)).sum(-1)


def _not_finite(array: np.ndarray) -> np.ndarray:
    """Which rows of an input hold NaN or infinity; the -inf of an additive mask, with nothing above 0, is allowed."""
    if array.dtype.kind != "f" or np.isfinite(array).all():
        return np.zeros(len(array) if array.ndim else 1, dtype=bool)
    allowed = np.isfinite(array) | (np.isneginf(array) & (array.max() <= 0))
    return ~allowed.reshape(len(array) if array.ndim else 1, -1).all(1)


def _check_count(verb: str, name: str, value: Any) -> None:
    if isinstance(value, bool) or not isinstance(value, int) or value < 1:
        raise ValueError(f"{verb}: {name} must be a whole number of at least 1, got {_literal(value)}.")


def check_digest(path: str | os.PathLike[str]) -> None:
    """Compare a file with the digest that ``export_onnx`` wrote into it; other files pass.

    Raises:
        UncertaintyFileError: The digest does not match.
    """
    with open(path, "rb") as file:
        head, digest = file.read(len(DIGEST_HEAD) + 64), hashlib.sha256()
        if DIGEST_KEY.encode() not in head:
            return
        while block := file.read(2**20):
            digest.update(block)
    if head != DIGEST_HEAD + digest.hexdigest().encode():
        raise UncertaintyFileError("other bytes than were written")


def _checked_quantiles(name: str, values: Any) -> tuple[float, ...]:
    """The reference of one measure: finite numbers in ascending order."""
    numbers = tuple(float(value) for value in values)
    if len(numbers) < 2 or any(type(value) not in (int, float) for value in values):
        raise TypeError(f"{len(numbers)} quantiles of {_literal(name)}")
    if not all(map(math.isfinite, numbers)) or any(a > b for a, b in pairwise(numbers)):
        raise ValueError(f"quantiles of {_literal(name)} that are not in order")
    return numbers


def _literal(text: Any) -> str:
    """Text from a file as a short literal without control characters."""
    literal = ascii(text)
    return literal if len(literal) <= 80 else f"{literal[:76]}...{literal[-1]}"


def _message(err: BaseException) -> str:
    """The message of an exception in one short line."""
    words = " ".join(str(err).split()) or type(err).__name__
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in words[:300]).rstrip(".")


def _names(sets: np.ndarray, names: Sequence[Any]) -> list[Any]:
    if sets.ndim == 1:
        return [name for name, inside in zip(names, sets, strict=True) if inside]
    return [_names(one, names) for one in sets]


def class_names(text: str) -> tuple[str, ...]:
    """The names of the classes in the user's metadata ``classes``: a JSON list, or separated by commas."""
    if text.lstrip().startswith("["):
        return tuple(str(name) for name in json.loads(text))
    return tuple(name.strip() for name in text.split(",")) if text.strip() else ()


def _dtype(onnx_type: str) -> str:
    name = onnx_type.removeprefix("tensor(").removesuffix(")")
    return NUMPY_TYPES.get(name, name)


def _shape_text(shape: Sequence[Any]) -> str:
    return f"({', '.join(str(size) for size in shape)})"
