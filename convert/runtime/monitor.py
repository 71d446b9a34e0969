"""A monitor: does a stream of uncertainties still look like the calibration data?"""

from __future__ import annotations

import json
import math
import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from .answers import Answer
from .evidence import EDGES, bins_of, log_e_values
from .files import check_count, literal, message
from .metadata import SCHEMA
from .sessions import UncertaintySession

__all__ = ["Monitor", "Verdict"]

#: Outputs that a monitor compares with their reference, where the file has one.
MEASURES = ("entropy", "mutual_information", "std", "novelty")


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
        check_count("Monitor", "window", window)
        watched = [name for name in MEASURES if session.counts.get(name) and name in session.outputs]
        if not watched:
            raise ValueError(
                f"Monitor: '{session.name}' must hold a reference distribution, got none; export it with "
                "calibration=bensemble.calibrate(...) or novelty=bensemble.fit_novelty(...)."
            )
        bins = {name: bins_of(session.reference[name], session.counts[name]) for name in watched}
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
            if isinstance(answer, Answer) and not answer.is_batch:
                answer = {name: array[None] for name, array in answer.items()}
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
            np.stack([log_e_values(since[:, m], null) for m, null in enumerate(nulls)], 1) + np.log(shares)[:, None]
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
                f"from_json: text must be what Monitor.to_json wrote, got {literal(str(text)[:60])} ({message(err)})."
            ) from err
        if version != SCHEMA:
            raise ValueError(f"from_json: version must be {SCHEMA}, got {literal(version)}; update bensemble.")
        return monitor

    def _restore(self, state: Mapping[str, Any]) -> None:
        """Set the state from :meth:`to_json`, with every field checked."""
        self.false_alarm_rate, self.window, self._open = state["false_alarm_rate"], state["window"], state["open"]
        if type(self.false_alarm_rate) is not float or not 0 < self.false_alarm_rate < 1:
            raise ValueError("false_alarm_rate")
        check_count("from_json", "window", self.window)
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
            raise TypeError(f"update: '{name}' must be an array of numbers, got {message(err)}.") from err
        terms = array.reshape(len(array), math.prod(array.shape[1:]))
        values = terms[np.arange(len(terms)), (self.seen + np.arange(len(terms))) % terms.shape[1]]
        broken = np.count_nonzero(~np.isfinite(values))
        if broken:
            raise ValueError(f"update: '{name}' must be finite, got {broken} of {len(values)} values that are not.")
        return values
