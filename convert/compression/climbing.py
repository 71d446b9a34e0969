"""In which order candidates are tried: harsher and harsher, then between the last good and the first bad one."""

from __future__ import annotations

from dataclasses import replace

from .candidates import Ladder
from .files import CandidateFiles
from .results import Point

__all__ = ["climb", "quantize"]


def climb(files: CandidateFiles, ladder: Ladder, max_drop: float | None, refine: int) -> None:
    """Try harsher and harsher thresholds; with a bound on the drop, halve the gap between the good and the bad."""
    passed, failed = 0.0, None
    for share in ladder.shares:
        point = _try(files, ladder, share)
        if point is None or max_drop is None:
            continue
        if point.drop <= max_drop:
            passed, failed = share, None
        elif failed is None:
            failed = share
        else:
            break  # twice in a row: harsher ones are not better
    for _ in range(refine if failed is not None else 0):
        middle = (passed + float(failed or 1.0)) / 2
        point = _try(files, ladder, middle)
        if point is not None and max_drop is not None and point.drop <= max_drop:
            passed = middle
        else:
            failed = middle


def quantize(files: CandidateFiles, max_drop: float | None) -> None:
    """The int8 file of every float file that is good enough and not beaten by another one."""
    floats = [(candidate, point) for candidate, point in files.points.items() if candidate.quantize is None]
    for candidate, point in floats:
        good = max_drop is None or point.drop <= max_drop
        if good and not any(other.beats(point) for _, other in floats):
            files.measure(replace(candidate, quantize="int8"))


def _try(files: CandidateFiles, ladder: Ladder, share: float) -> Point | None:
    candidate = ladder.candidate(share)
    return None if candidate is None else files.measure(candidate)
