"""False alarms and power of the monitor, beside a Kolmogorov-Smirnov test with looks and the monitor of version 1.

Calibration examples and streams are drawn anew each time, uncertainties from a gamma distribution of shape 2. A
monitor looks after each example, the Kolmogorov-Smirnov test of the same level after every 50th. The rate is split
among four measures, but in the first row, where all of it belongs to one. Also the time of an update and of a verdict,
the size of a snapshot after ten million examples, and updates that threads lose.

Run ``python benchmarks/monitor.py --streams 2000``; 400 of them drift.
"""

from __future__ import annotations

import argparse
import math
import threading
import time
from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np

from convert.runtime import Monitor
from convert.runtime.evidence import Bins, _alternatives, bins_of, log_shares

RATE, CALIBRATION = 0.01, 300
Draw = Callable[[np.random.Generator, int], np.ndarray]


def familiar(rng: np.random.Generator, count: int) -> np.ndarray:
    return rng.gamma(2.0, size=count)


def rarely(rng: np.random.Generator, count: int) -> np.ndarray:
    return np.where(rng.random(count) < 0.05, 20.0, 1.0) * familiar(rng, count)


#: Name, quiet examples before the drift, examples with drift, their distribution.
STREAMS: dict[str, tuple[int, int, Draw]] = {
    "nothing changes, 10,000": (10_000, 0, familiar),
    "x1.28, 3,000": (0, 3000, lambda rng, count: 1.28 * familiar(rng, count)),
    "x1.28 after 5,000, 3,000": (5000, 3000, lambda rng, count: 1.28 * familiar(rng, count)),
    "5 % x20, 1,000": (0, 1000, rarely),
    "5 % x20 after 5,000, 1,000": (5000, 1000, rarely),
    "x1.65, 300": (0, 300, lambda rng, count: 1.65 * familiar(rng, count)),
}


def ratio_path(parameters: np.ndarray, null: np.ndarray, places: np.ndarray) -> np.ndarray:
    """Log DM(c; b) / DM(c; a) after each example, shape (alternatives, examples)."""
    hits = places[:, None] == np.arange(len(null))
    seen = (hits.cumsum(0) - hits)[np.arange(len(places)), places]
    number = np.arange(len(places))
    steps = np.log(parameters[:, places] + seen) - np.log(parameters.sum(1)[:, None] + number)
    steps -= np.log(null[places] + seen) - np.log(null.sum() + number)
    return steps.cumsum(1)


def evidence_path(places: np.ndarray, bins: Bins, window: int = 250) -> np.ndarray:
    """The evidence of the monitor after each example, with every start that it ever had."""
    found = np.full(len(places), -np.inf)
    counts = np.concatenate([np.zeros((1, len(bins.null))), np.eye(len(bins.null))[places].cumsum(0)])
    for number, start in enumerate(range(0, len(places), window)):
        null, share = np.array(bins.null) + counts[start][None], log_shares(np.array([number]))[0]
        for groups, weight, parameters in _alternatives(null):
            paths = ratio_path(parameters[0], (null @ groups)[0], groups.argmax(1)[places[start:]])
            total = np.logaddexp.reduce(paths, axis=0) + weight + share
            found[start:] = np.logaddexp(found[start:], total)
    return found


def version_1_path(places: np.ndarray, bins: Bins, window: int = 1000) -> np.ndarray:
    """The evidence of the monitor of version 1: one broad alternative, the best start."""
    found, null = np.full(len(places), -np.inf), np.array([*bins.null[:-2], bins.null[-2] + bins.null[-1]])
    for number, start in enumerate(range(0, len(places), window)):
        share = math.log(0.5 if number == 0 else 0.5 / (number * (number + 1)))
        paths = ratio_path(np.full((1, len(null)), 0.5), null, np.minimum(places[start:], len(null) - 1))
        found[start:] = np.maximum(found[start:], paths[0] + share)
    return found


def kolmogorov_smirnov(reference: np.ndarray, stream: np.ndarray, look: int = 50) -> np.ndarray:
    """Whether the test of the stream so far rejects at the rate, after each example that is looked at."""
    order, places = np.arange(len(reference) + 1) / len(reference), np.searchsorted(np.sort(reference), stream)
    counts = np.zeros((len(stream) // look, len(reference) + 1))
    np.add.at(counts, (np.arange(len(counts) * look) // look, places[: len(counts) * look]), 1)
    counts, number = counts.cumsum(0), look * np.arange(1, len(counts) + 1)
    upper = counts.cumsum(1) / number[:, None]
    lower = np.concatenate([np.zeros((len(counts), 1)), upper[:, :-1]], 1)
    distance, looks = np.maximum(abs(upper - order), abs(lower - order)).max(1), np.zeros(len(stream), dtype=bool)
    critical = math.sqrt(-math.log(RATE / 2) / 2)
    looks[number - 1] = distance > critical * np.sqrt((len(reference) + number) / (len(reference) * number))
    return looks


def detected(rng: np.random.Generator, quiet: int, drift: int, draw: Draw, measures: int) -> dict[str, float]:
    """After how many examples of drift each method raises its alarm; 0 for a false one, infinity for none."""
    reference = familiar(rng, CALIBRATION)
    bins = bins_of(np.quantile(reference, np.linspace(0, 1, 101)).tolist(), CALIBRATION)
    assert bins is not None
    stream = np.concatenate([familiar(rng, quiet), draw(rng, drift)])
    places = np.searchsorted(bins.edges, stream)
    alarms = {
        "monitor": evidence_path(places, bins) >= math.log(measures / RATE),
        "version 1": version_1_path(places, bins) >= math.log(measures / RATE),
        "Kolmogorov-Smirnov": kolmogorov_smirnov(reference, stream),
    }
    return {name: max(alarm.argmax() + 1 - quiet, 0) if alarm.any() else math.inf for name, alarm in alarms.items()}


def table(streams: int) -> None:
    print(f"\n{CALIBRATION} calibration examples, rate {RATE}: share with an alarm (false alarms), median delay\n")
    names = ("monitor", "version 1", "Kolmogorov-Smirnov")
    print(f"| stream | {' | '.join(names)} |\n|---|---|---|---|")
    for number, (label, (quiet, drift, draw)) in enumerate(STREAMS.items()):
        rng = np.random.default_rng(number)
        count = min(streams, 400) if drift else streams
        found = [detected(rng, quiet, drift, draw, 4 if drift else 1) for _ in range(count)]
        cells = []
        for name in names:
            times = np.array([each[name] for each in found])
            false, hits = np.mean(times == 0), np.mean((times > 0) & np.isfinite(times))
            median = f", median {np.median(times):.0f}" if np.isfinite(np.median(times)) and drift else ""
            cells.append(f"{hits:.1%} ({false:.1%}){median}" if drift else f"({false:.2%})")
        print(f"| {label} | {' | '.join(cells)} |", flush=True)


def costs() -> None:
    rng = np.random.default_rng(0)
    values = familiar(rng, 300)
    quantiles = {name: tuple(np.quantile(values, np.linspace(0, 1, 101))) for name in ("entropy", "mutual_information")}
    session: Any = SimpleNamespace(
        name="", reference=quantiles, outputs=tuple(quantiles), counts=dict.fromkeys(quantiles, 300)
    )
    monitor, batch = Monitor(session), dict.fromkeys(quantiles, familiar(rng, 100))
    checked = Monitor(session)
    stream = familiar(rng, 700)
    checked.update(dict.fromkeys(quantiles, stream))
    bins = checked._bins["entropy"]
    path = evidence_path(np.searchsorted(bins.edges, stream), bins)
    assert abs(path[-1] - math.log(2) - checked.verdict().evidence) < 1e-6  # the paths are those of the monitor
    print(f"\nbatches of 100 examples, two measures\n{'seen':>12}{'update':>12}{'verdict':>12}{'snapshot':>12}")
    for count in (1000, 100_000, 10_000_000):
        while monitor.seen < count - 20_000:
            monitor.update(dict.fromkeys(quantiles, familiar(rng, 20_000)))
        before = time.perf_counter()
        for _ in range(100):
            monitor.update(batch)
        update = (time.perf_counter() - before) / 100
        before = time.perf_counter()
        monitor.verdict()
        verdict = time.perf_counter() - before
        size = len(monitor.to_json())
        print(f"{monitor.seen:>12,}{update * 1e3:>9.3f} ms{verdict * 1e3:>9.1f} ms{size / 1e3:>9.1f} kB")
    shared, one = Monitor(session), dict.fromkeys(quantiles, np.array([1.0]))
    threads = [threading.Thread(target=lambda: [shared.update(one) for _ in range(10_000)]) for _ in range(16)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    print(f"16 threads x 10,000 updates: {16 * 10_000 - shared.seen} lost")


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--streams", type=int, default=200)
    costs()
    table(parser.parse_args().streams)
