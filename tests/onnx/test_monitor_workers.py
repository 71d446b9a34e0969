"""Monitors of many workers: threads, snapshots, restarts, and memory that does not grow with the stream."""

import copy
import itertools
import json
import math
import pickle
import threading

import numpy as np
import pytest
from uncertainty_files import answers, reference

from convert.runtime import Monitor
from convert.runtime.evidence import EDGES, _log_gamma, bins_of
from convert.runtime.lives import Life

SOURCE = reference(np.random.default_rng(0).random(500))


def fed(monitor, values, batch=100):
    for part in np.split(values, range(batch, len(values), batch)):
        monitor.update(answers(part))
    return monitor


def test_threads_lose_nothing():
    monitor, values = Monitor(SOURCE), np.random.default_rng(1).random((16, 1000, 2))

    def work(rows):
        for row in rows:
            monitor.update(answers(row))

    threads = [threading.Thread(target=work, args=(rows,)) for rows in values]
    for thread in threads:
        thread.start()
    for _ in range(20):
        monitor.verdict()
    for thread in threads:
        thread.join()
    assert monitor.seen == values.size
    edges = bins_of(SOURCE.reference["entropy"], 500).edges
    counts = np.sum([rows[0] for rows in monitor._life.counts], axis=0)
    assert np.array_equal(counts, np.bincount(np.searchsorted(edges, values.ravel()), minlength=len(EDGES) + 1))


def test_snapshots_merge_in_any_order_and_twice():
    rng = np.random.default_rng(2)
    workers = [fed(Monitor(SOURCE), rng.random(count)) for count in (3100, 700, 90)]
    early = [Monitor.from_json(worker.to_json()) for worker in workers]
    for worker, count in zip(workers, (800, 10, 6000), strict=True):
        fed(worker, rng.random(count) ** 0.9)
    lives, verdicts = set(), set()
    for order in itertools.islice(itertools.permutations([*workers, *early]), 0, None, 37):
        merged = order[0]
        for other in (*order[1:], order[0], order[3]):
            merged = merged.merge(other)
        assert merged.seen == 3900 + 710 + 6090
        lives.add(json.dumps(json.loads(merged.to_json())["lives"], sort_keys=True))
        verdicts.add(merged.verdict())
    assert len(lives) == len(verdicts) == 1
    assert workers[1].seen == 710  # untouched


@pytest.mark.parametrize(
    "again", [lambda m: Monitor.from_json(m.to_json()), copy.deepcopy, lambda m: pickle.loads(pickle.dumps(m))]
)
def test_a_restarted_worker_goes_on_and_counts_nothing_twice(again):
    rng = np.random.default_rng(3)
    first = fed(Monitor(SOURCE), rng.random(2100))
    snapshot = again(first)
    fed(first, rng.random(50))  # lost by the restart, and known to the others
    second = fed(snapshot, rng.random(900))
    assert second.seen == 3000
    assert first.merge(second).seen == second.merge(first).seen == 3050
    whole = again(second)
    fed(whole, rng.beta(3, 1, 200))
    verdict = whole.verdict()
    assert verdict.drifted
    assert 2100 <= verdict.since <= 3000


def test_late_drift_beside_other_workers():
    rng = np.random.default_rng(4)
    calm, other = fed(Monitor(SOURCE), rng.random(4000)), fed(Monitor(SOURCE), rng.random(4000))
    assert not calm.merge(other).verdict().drifted
    fed(calm, rng.beta(3, 1, 300))
    fed(other, rng.beta(3, 1, 300))
    assert calm.merge(other).verdict().drifted


def test_memory_and_rows_grow_with_the_logarithm():
    life, rng = Life(10, [3]), np.random.default_rng(5)
    places = rng.integers(0, 3, 100_000)
    for part in np.split(places, 50):
        life.add([part])
    assert life.seen == 100_000
    assert len(life.rows) <= 3 * 14
    assert life.rows[0][0] == 0
    assert all(a[1] == b[0] for a, b in itertools.pairwise(life.rows))
    assert np.array_equal(np.sum([rows[0] for rows in life.counts], axis=0), np.bincount(places))
    edge = life.rows[5][0] * 10
    assert np.array_equal(np.sum([r[0] for r in life.counts[5:]], axis=0), np.bincount(places[edge:]))
    assert life.rows[-1][1] - life.rows[-1][0] == 1


def test_the_logarithm_of_the_gamma_function():
    x = np.array([1e-9, 0.01, 0.5, 1, 3.3, 10, 1e5, 1e12])
    np.testing.assert_allclose(_log_gamma(x), [math.lgamma(value) for value in x], rtol=1e-11, atol=1e-11)
