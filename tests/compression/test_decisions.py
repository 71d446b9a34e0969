"""What a search decides, on recorded measurements of a real one."""

from __future__ import annotations

import math
import warnings
from dataclasses import replace
from itertools import pairwise

import pytest

from convert import compress
from convert.compression.candidates import SHARES, Candidate
from convert.compression.chance import warn_of_ruin
from convert.compression.files import CandidateFiles
from convert.compression.results import Constraints

from .in_memory import measured, mlp
from .recording import DROPS, recorded, replay


def _replayed(monkeypatch, tmp_path, **constraints):
    """The search among recorded files, and what it asked for in order."""
    asked = replay(monkeypatch)
    model, x = mlp()
    constraints |= {"scores": "snr", "calibration_data": x}
    found = compress(model, lambda network: 1.0, x, tmp_path / "small.onnx", **constraints)
    assert (tmp_path / "small.onnx").stat().st_size == found.chosen.size
    return found, asked


def test_without_a_bound_on_the_drop_the_best_metric_that_fits_is_chosen(monkeypatch, tmp_path):
    size = recorded()["points"][Candidate()].size
    found, _ = _replayed(monkeypatch, tmp_path, max_size=size // 2)
    fitting = [point for point in found.points if point.size <= size // 2]
    assert found.chosen.metric == max(point.metric for point in fitting)
    assert (tmp_path / "small.onnx").stat().st_size <= size // 2


@pytest.mark.parametrize("drop", [drop for drop in DROPS if drop is not None])
def test_the_search_halves_the_gap_between_the_last_good_and_the_first_bad_threshold(monkeypatch, tmp_path, drop):
    found, asked = _replayed(monkeypatch, tmp_path, max_drop=drop)
    assert found.chosen.size == min(point.size for point in found.points if point.drop <= drop)
    assert asked[:2] == [Candidate(), Candidate(quantize="int8")]
    points = recorded()["points"]
    for granularity, thresholds in recorded()["thresholds"].items():
        shares = SHARES[granularity]
        climbed = [c for c in asked if c.granularity == granularity and c.quantize is None]
        first = [c for c in climbed if c.threshold in [thresholds[share] for share in shares]]
        good = [points[c].drop <= drop for c in first]
        assert [c.threshold for c in first] == [thresholds[share] for share in shares[: len(first)]]
        assert (False, False) not in list(pairwise(good))[:-1]  # it stops at two bad ones in a row
        last = max((k for k, holds in enumerate(good) if holds), default=-1)
        low, high = shares[last] if last >= 0 else 0.0, shares[last + 1]
        refined = []
        for _ in range(3):
            middle = (low + high) / 2
            refined.append(Candidate(thresholds[middle], granularity))
            low, high = (middle, high) if points[refined[-1]].drop <= drop else (low, middle)
        assert climbed == list(dict.fromkeys([*first, *refined]))


def test_a_ruined_network_is_warned_of():
    said = r"'SNR > 58', scores 0\.19, the network 0\.99 and .* 0\.1; give max_drop, or repair=loader"
    with pytest.warns(UserWarning, match=said):
        warn_of_ruin("SNR > 58", 0.19, 0.99, 0.1, ", or repair=loader")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        warn_of_ruin("SNR > 2", 0.9, 0.99, 0.1, "")
        warn_of_ruin("SNR > 2", -5.0, -1.0, float("-inf"), "")


@pytest.mark.parametrize("drop", DROPS)
def test_eight_bits_are_tried_where_the_float_file_is_good_and_unbeaten(monkeypatch, tmp_path, drop):
    found, asked = _replayed(monkeypatch, tmp_path, **({"max_size": 10**9} if drop is None else {"max_drop": drop}))
    untimed = [replace(point, latency_ms=math.nan) for point in found.points]
    floats = [point for point in untimed if point.quantize is None]
    wanted = {
        (point.threshold, point.granularity)
        for point in floats
        if (drop is None or point.drop <= drop) and not any(other.beats(point) for other in floats)
    }
    rounded = {(c.threshold, c.granularity) for c in asked if c.quantize == "int8"}
    assert rounded == wanted | {(None, None)}  # the mean network comes first, whatever it is like


def test_a_point_beats_another_where_it_is_nowhere_worse_and_somewhere_better():
    assert measured(0.9, 10, 1.0).beats(measured(0.9, 11, 1.0))
    assert not measured(0.9, 10, 1.0).beats(measured(0.9, 10, 1.0))
    assert not measured(0.9, 10, 1.0).beats(measured(0.91, 11, 2.0))


def test_constraints_say_what_a_point_misses():
    constraints = Constraints(max_drop=0.05, max_latency_ms=2.0, max_size=10)
    assert constraints.misses(measured(0.9, 10, 3.0)) == ["max_drop", "max_latency_ms"]
    assert constraints.misses(measured(0.96, 10, 2.0)) == []
    assert "the least for max_size is 10, by 'p', which misses max_drop" in constraints.nearest(
        [measured(0.9, 10, 1.0)]
    )


def test_a_drop_that_equals_the_bound_meets_it(tmp_path):
    model, x = mlp(8)
    scores = iter([0.9, 0.89])  # 0.9 - 0.89 > 0.01 in floating point
    files = CandidateFiles(model, lambda network: next(scores), x, tmp_path, {"weight": "weight"})
    files.measure(Candidate())
    point = files.measure(Candidate(0.5, "weight"))
    assert Constraints(max_drop=0.01).misses(point) == []
