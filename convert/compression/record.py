"""What a search has measured, in a folder of the user's, so that a search that was stopped goes on."""

from __future__ import annotations

import json
from collections.abc import Iterable
from dataclasses import asdict
from pathlib import Path

from bensemble.checkpoint.writing import replacing
from bensemble.errors import InvalidValueError, shown

from .candidates import Candidate
from .results import Point

__all__ = ["Record", "candidate_of"]


def candidate_of(point: Point) -> Candidate:
    """What was tried to get a point."""
    return Candidate(point.threshold, point.granularity, point.score or "snr", point.quantize)


class Record:
    """The points of a search as a JSON file beside its ONNX files.

    Args:
        folder: The folder of the user's.
        fingerprint: That of the posterior that is pruned.
        settings: Arguments that change every file, by name; of data only whether there is any.

    Raises:
        InvalidValueError: The folder holds the search of another posterior or with other settings, or something else
            under that name.
    """

    def __init__(self, folder: Path, fingerprint: str, settings: dict[str, bool]) -> None:
        self._path, self._held = folder / "search.json", {"posterior": fingerprint, "settings": settings}
        self.points: dict[Candidate, Point] = {}
        if not self._path.exists():
            return
        try:
            held = json.loads(self._path.read_bytes())
            points = [Point(**values) for values in held["points"]]
        except (OSError, ValueError, TypeError, KeyError, RecursionError) as err:
            raise InvalidValueError(
                f"compress: '{self._path}' is not the record of a search ({shown(err)}); choose another folder."
            ) from err
        if held.get("posterior") != fingerprint:
            raise InvalidValueError(
                f"compress: folder '{folder}' must be of this model, got the search of another posterior; choose "
                "another folder, or empty it."
            )
        before = held.get("settings", settings)
        if before != settings:
            name = next(name for name in settings if before.get(name) != settings[name])
            wanted, found = ("with", "without") if settings[name] else ("without", "with")
            raise InvalidValueError(
                f"compress: folder '{folder}' must be of a search {wanted} {name}=, got one {found}; choose another "
                "folder, or empty it."
            )
        self.points = {candidate_of(point): point for point in points}

    def write(self, points: Iterable[Point]) -> None:
        """Replace the record by these points and those that it held before."""
        self.points |= {candidate_of(point): point for point in points}
        content = {**self._held, "points": [asdict(point) for point in self.points.values()]}
        with replacing(self._path) as temporary:
            temporary.write_text(json.dumps(content, indent=1) + "\n")
