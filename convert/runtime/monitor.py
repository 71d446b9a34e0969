"""A monitor: does a stream of uncertainties still look like the calibration data?"""

from __future__ import annotations

import json
import math
import os
import secrets
import threading
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import numpy as np

from .evidence import EDGES, Bins, bins_of, log_e_values, log_shares
from .files import check_count, literal, message
from .lives import Life, since_starts
from .sessions import UncertaintySession
from .terms import MEASURES, batches, measured, terms_of
from .verdict import Verdict

__all__ = ["Monitor"]

#: By how much these measures of a file may differ from those of its reference, in nats.
ROUNDING = {"entropy": 3e-7, "mutual_information": 3e-7}

#: Fewer examples have no quantiles that a bound could hold for.
LEAST_REFERENCE = 10

#: Version of what :meth:`Monitor.to_json` writes.
VERSION = 2


class Monitor:
    r"""Compares live uncertainties with the reference in the file; its false-alarm rate holds for the whole stream.

    It counts how many examples fall between quantiles of the reference data. :mod:`convert.runtime.evidence` says how
    strongly such counts speak against the reference: by a martingale M of mean 1 if nothing has changed, also for a
    small reference. To detect a late drift there is an M from the start of every ``window``, whose reference is joined
    by the stream up to there. They are added, each with a share of the false-alarm rate, and each measure has an equal
    part of it (union bound). A random number between 0 and 1 is added to the index of the most probable class, in the
    calibration data as in the stream: then classes that become frequent or rare fill other bins, and the counts have
    the same exact probabilities. So a verdict may be asked for at any time and any number of times (Ville's
    inequality).

    This assumes examples that are independent of each other and of the calibration data. The terms of one example
    (tokens, pixels) depend on each other, so only one of them counts.

    An update takes the same time and memory however long the stream is; memory grows with the logarithm of its length.
    Threads may share a monitor. Every worker of a service has one of its own; :meth:`merge` adds them up, and snapshots
    may arrive in any order and more than once. A monitor from :meth:`from_json` or a pickle goes on as a new worker.

    Args:
        session: The file's session, or the path of the file.
        reference: What the session answers to familiar data that chose nothing, in place of the reference in the file:
            an answer or several. For a file without a calibration, or when the calibration data is not what arrives.
        false_alarm_rate: The bound r.
        window: Number of examples between two starts.

    Raises:
        TypeError: ``session`` is something else.
        ValueError: There is no reference distribution, or one that does not vary; an argument out of range.

    Example:
        >>> monitor = convert.runtime.Monitor("sure.onnx")
        >>> monitor.update(answer)
        >>> print(monitor.verdict())
    """

    def __init__(
        self,
        session: UncertaintySession | str | os.PathLike[str],
        *,
        reference: Mapping[str, Any] | Iterable[Mapping[str, Any]] | None = None,
        false_alarm_rate: float = 0.01,
        window: int = 250,
    ) -> None:
        if isinstance(session, (str, os.PathLike)):
            session = UncertaintySession(session)
        if not isinstance(getattr(session, "counts", None), Mapping):
            raise TypeError(
                f"Monitor: session must be an UncertaintySession or the path of a file, got {type(session).__name__}."
            )
        if not isinstance(false_alarm_rate, (int, float, np.floating)) or not 0 < false_alarm_rate < 1:
            raise ValueError(f"Monitor: false_alarm_rate must be between 0 and 1, got {false_alarm_rate!r}.")
        check_count("Monitor", "window", window)
        self._class_axis = getattr(session, "class_axis", None) or 1
        counts: Mapping[str, int] = session.counts
        quantiles: Mapping[str, Sequence[float]] = session.reference
        if reference is not None:
            counts, quantiles = measured([*batches("Monitor: reference", reference)], self._class_axis)
        watched = [name for name in MEASURES if counts.get(name) and name in (*session.outputs, "class")]
        if not watched:
            raise ValueError(
                f"Monitor: '{session.name}' must hold a reference distribution, got none; pass reference=session(...) "
                "of familiar data, or export it with calibration=bensemble.calibrate(...) or "
                "novelty=bensemble.fit_novelty(...)."
            )
        few = {name: counts[name] for name in watched if counts[name] < LEAST_REFERENCE}
        if few:
            raise ValueError(
                f"Monitor: a reference must have at least {LEAST_REFERENCE} examples, got {min(few.values())} for "
                f"{' and '.join(few)}; give more familiar data."
            )
        bins = {name: bins_of(quantiles[name], counts[name], ROUNDING.get(name, 0.0)) for name in watched}
        self._bins = {name: found for name, found in bins.items() if found is not None}
        if not self._bins:
            raise ValueError(f"Monitor: the reference of {' and '.join(watched)} must vary, got one value everywhere.")
        self.false_alarm_rate, self.window = float(false_alarm_rate), int(window)
        self._begin({}, 0)

    @property
    def seen(self) -> int:
        """Number of examples so far, of all workers."""
        return sum(life.seen for life in self._all())

    def update(self, answers: Mapping[str, Any] | Iterable[Mapping[str, Any]]) -> None:
        """Count the examples of an answer, or of several; a mapping with arrays of its outputs is one too.

        Raises:
            TypeError: It is no answer.
            ValueError: An uncertainty is missing or not finite; that answer is not counted.
        """
        for answer in batches("update: answers", answers):
            terms = {name: self._terms(name, answer) for name in self._bins}
            if len({len(found) for found in terms.values()}) > 1:
                raise ValueError(
                    f"update: an answer must have {' and '.join(self._bins)} for each example, got "
                    f"{', '.join(str(len(found)) for found in terms.values())}."
                )
            with self._lock:
                self._life.add([self._places(name, found) for name, found in terms.items()])

    def merge(self, other: Monitor) -> Monitor:
        """The monitor of both: of each worker the latest snapshot.

        Merging is idempotent, commutative and associative: twice, or in another order, gives the same.

        Raises:
            ValueError: The other monitor has another reference, false-alarm rate or window.
        """
        if not isinstance(other, Monitor) or self._settings() != other._settings():
            raise ValueError("merge: other must be a Monitor of the same file, false_alarm_rate and window.")
        merged, states = Monitor.from_json(self.to_json()), json.loads(other.to_json())["lives"]
        sizes = [len(bins.null) for bins in self._bins.values()]
        for key, state in states.items():
            life, known = Life.from_dict(state, self.window, sizes), merged._others.get(key)
            if known is None or known.seen < life.seen:
                merged._others[key] = life
        return merged

    def verdict(self) -> Verdict:
        """Whether the stream has drifted; the class describes the guarantee."""
        with self._lock:
            lives = [life for life in self._all() if life.seen] or [self._life]
            counted = [since_starts(lives, measure) for measure in range(len(self._bins))]
        # Workers side by side have no common order: what one counted before a start may be later than what another
        # counted since. Then the reference stays alone.
        ends = [0, *(life.end for life in lives)]
        in_order = all(life.first >= end for life, end in zip(lives, ends, strict=False))
        found = []
        for (starts, before, since), bins in zip(counted, self._bins.values(), strict=True):
            values = log_e_values(since, before if in_order else np.zeros_like(before), bins) + log_shares(starts)
            found.append((float(np.logaddexp.reduce(values)) - math.log(len(self._bins)), int(values.argmax())))
        evidence, start = max(found)
        measure = found.index((evidence, start))
        (_, before, since), bins = counted[measure], list(self._bins.values())[measure]
        high = EDGES.index(0.9) + 1
        counts, null = since[start], np.asarray(bins.null)
        return Verdict(
            drifted=bool(evidence >= -math.log(self.false_alarm_rate)),
            evidence=evidence,
            false_alarm_rate=self.false_alarm_rate,
            measure=list(self._bins)[measure],
            since=int(before[start].sum()),
            seen=int(before[start].sum() + counts.sum()),
            share_high=float(counts[high:].sum() / max(counts.sum(), 1)),
            expected_high=float(null[high:].sum() / null.sum()),
        )

    def to_json(self) -> str:
        """The state of the monitor as JSON text, a snapshot to merge or to go on from."""
        with self._lock:
            lives = {**self._others, self._key: self._life}
            state = {key: life.to_dict() for key, life in sorted(lives.items()) if life.seen}
        return json.dumps({"version": VERSION, **self._settings(), "own": self._key, "lives": state})

    @classmethod
    def from_json(cls, text: str) -> Monitor:
        """A monitor from the text of :meth:`to_json`, which goes on where that one was.

        Raises:
            ValueError: The text is not from :meth:`to_json`, or of another version.
        """
        try:
            state, monitor = json.loads(text), object.__new__(cls)
            version = state["version"]
            if version == VERSION:
                monitor._restore(state)
        except (AttributeError, KeyError, OverflowError, RecursionError, TypeError, ValueError) as err:
            raise ValueError(
                f"from_json: text must be what Monitor.to_json wrote, got {literal(str(text)[:60])} ({message(err)})."
            ) from err
        if version != VERSION:
            raise ValueError(f"from_json: version must be {VERSION}, got {literal(version)}; begin a new monitor.")
        return monitor

    def __reduce__(self) -> Any:
        return Monitor.from_json, (self.to_json(),)

    def _begin(self, others: dict[str, Life], first: int) -> None:
        """Begin a life: a name that no other monitor has, and counts of its own."""
        self._others, self._key, self._lock = others, secrets.token_hex(8), threading.Lock()
        self._noise = np.random.default_rng(int(self._key, 16))
        self._life = Life(self.window, [len(bins.null) for bins in self._bins.values()], first)

    def _all(self) -> list[Life]:
        """All lives, the earliest first."""
        return sorted([*self._others.values(), self._life], key=lambda life: (life.first, life.end))

    def _restore(self, state: Mapping[str, Any]) -> None:
        """Set the state from :meth:`to_json`, with every field checked."""
        self.false_alarm_rate, self.window = state["false_alarm_rate"], state["window"]
        self._class_axis = state.get("class_axis", 1)
        check_count("from_json", "class_axis", self._class_axis)
        if type(self.false_alarm_rate) is not float or not 0 < self.false_alarm_rate < 1:
            raise ValueError("false_alarm_rate")
        check_count("from_json", "window", self.window)
        self._bins = {}
        for name, (edges, null) in state["bins"].items():
            bins = Bins(tuple(map(float, edges)), tuple(map(float, null)))
            if name not in MEASURES or (len(bins.edges), len(bins.null)) != (len(EDGES), len(EDGES) + 1):
                raise ValueError("bins")
            ascend = all(a <= b for a, b in zip(bins.edges, bins.edges[1:], strict=False))
            if not ascend or not all(0 <= a < 2**53 for a in bins.null) or not sum(a > 0 for a in bins.null) > 1:
                raise ValueError("bins")
            self._bins[name] = bins
        if not self._bins:
            raise ValueError("no bins")
        sizes = [len(bins.null) for bins in self._bins.values()]
        lives = {str(key): Life.from_dict(life, self.window, sizes) for key, life in state["lives"].items()}
        own = lives.get(state["own"])
        self._begin(lives, own.end if own is not None else 0)

    def _settings(self) -> dict[str, Any]:
        bins = {name: (list(found.edges), list(found.null)) for name, found in self._bins.items()}
        settings = {"false_alarm_rate": self.false_alarm_rate, "window": self.window, "bins": bins}
        return settings | ({"class_axis": self._class_axis} if "class" in bins else {})

    def _terms(self, name: str, answer: Mapping[str, Any]) -> np.ndarray:
        with self._lock:  # the noise is that of all threads
            return terms_of(name, answer, self._class_axis, self._noise)

    def _places(self, name: str, terms: np.ndarray) -> np.ndarray:
        """The bin of one term of each example; which one changes from example to example."""
        number = (self._life.seen + np.arange(len(terms))) % terms.shape[1]
        values = terms[np.arange(len(terms)), number]
        broken = np.count_nonzero(~np.isfinite(values))
        if broken:
            raise ValueError(f"update: '{name}' must be finite, got {broken} of {len(values)} values that are not.")
        return np.searchsorted(self._bins[name].edges, values)
