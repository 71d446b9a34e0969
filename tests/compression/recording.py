"""Measurements of a real search, by the signal-to-noise ratio; so tests of its decisions need not export files again.

``PYTHONPATH=.:tests python -m compression.recording`` runs that search, some minutes, and writes ``recorded.json``.
"""

from __future__ import annotations

import json
from dataclasses import asdict, replace
from pathlib import Path
from tempfile import TemporaryDirectory

import pytest

from bensemble.pruning.criteria import pruning_scores
from convert.compression import Point, search
from convert.compression.candidates import SHARES, Candidate, Ladder
from convert.compression.climbing import climb, quantize
from convert.compression.files import CandidateFiles
from convert.compression.record import candidate_of
from convert.graph.compaction import channel_groups

from .digits import accuracy, data, posterior

__all__ = ["DROPS", "recorded", "replay"]

RECORD = Path(__file__).with_name("recorded.json")

#: Bounds that the record holds a search for; None tries every share of every granularity.
DROPS = (None, 0.0, 0.005, 0.01, 0.02, 0.05)


def recorded() -> dict:
    """The recorded points by their candidates, and the thresholds of each granularity by their shares."""
    found = json.loads(RECORD.read_text())
    points = {candidate_of(point): point for point in (Point(**values) for values in found["points"])}
    ladders = {name: {float(share): t for share, t in rungs.items()} for name, rungs in found["thresholds"].items()}
    return {"points": points, "thresholds": ladders}


def replay(patch: pytest.MonkeyPatch) -> list[Candidate]:
    """Let ``compress`` find recorded measurements in place of files; the list takes in what it asks for, in order.

    A candidate without a record is a KeyError: then the search has changed, and the record is made anew.
    """
    record, asked = recorded(), list[Candidate]()

    class Files(CandidateFiles):
        def measure(self, candidate: Candidate) -> Point:
            if candidate not in self.points:
                asked.append(candidate)
                point = replace(record["points"][candidate], latency_ms=float("nan"), latency_ratio=float("nan"))
                self.points[candidate] = point
                self.path(point).write_bytes(bytes(point.size))
            return self.points[candidate]

        def check_baseline(self, max_drop: float | None) -> float:
            """The record holds scores, and no network."""
            return float("-inf")

        def time(self, rounds: int = 5) -> None:
            self.points = {candidate: record["points"][candidate] for candidate in self.points}

    class Rungs(Ladder):
        def __init__(self, granularity: str) -> None:
            self.granularity, self.score, self.shares = granularity, "snr", SHARES[granularity]

        def candidate(self, share: float) -> Candidate | None:
            threshold = record["thresholds"][self.granularity][share]
            return None if threshold is None else Candidate(threshold, self.granularity)

    patch.setattr(search, "CandidateFiles", Files)
    patch.setattr(search, "ladders", lambda bnn, granularities, rankings: [Rungs(name) for name in granularities])
    return asked


def record() -> None:
    """Make every file that the searches ask for, each once, and time them in turns."""
    bnn, (images, labels) = posterior(), data().search
    example, ways = images[:16], {"weight": "weight", "channel": channel_groups(bnn, images[:16])}
    thresholds: dict[str, dict[float, float | None]] = {name: {} for name in ways}

    class Rungs(Ladder):
        def candidate(self, share: float) -> Candidate | None:
            found = super().candidate(share)
            thresholds[self.granularity][share] = None if found is None else found.threshold
            return found

    class OneSearch:
        """What one search asks for, of files that all share."""

        def __init__(self) -> None:
            self.points: dict[Candidate, Point] = {}

        def measure(self, asked: Candidate) -> Point:
            self.points[asked] = files.measure(asked)
            return self.points[asked]

    with TemporaryDirectory() as folder:
        files = CandidateFiles(
            *(bnn, accuracy(images, labels), example, Path(folder), ways),
            calibration_data=data().train[0][:256],
            progress=print,
        )
        for drop in DROPS:
            one = OneSearch()
            for first in (Candidate(), Candidate(quantize="int8")):
                one.measure(first)
            for name, way in ways.items():
                climb(one, Rungs(name, "snr", *pruning_scores(bnn, way)), drop, refine=3)
            quantize(one, drop)
        files.time()
    points = [asdict(point) for point in files.points.values()]
    RECORD.write_text(json.dumps({"thresholds": thresholds, "points": points}, indent=1) + "\n")


if __name__ == "__main__":
    record()
