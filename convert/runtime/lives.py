"""Counts of examples over the life of one monitor, in rows that grow coarser with age.

A row covers whole windows of a stream. Of each power of two there are at most three rows of so many windows: with the
next one the two oldest become one of twice the size. A stream of N windows so takes about 3 log2(N) rows, and a change
can be dated to within a share of its age.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

__all__ = ["Life", "since_starts"]

#: Rows of one size.
ROWS = 3


class Life:
    """Counts of one monitor between its start, or its restart from a snapshot, and now.

    Args:
        window: Examples in a window.
        bins: Number of bins of each measure.
        first: Number of its first window: after a restart they go on.

    Attributes:
        rows: First and last window of each row, the last one excluded.
        counts: For each row and measure the counts, of shape (bins,).
        open: Examples in the last window.
        seen: Examples altogether.
    """

    def __init__(self, window: int, bins: Sequence[int], first: int = 0) -> None:
        self.window, self.bins, self.first = window, tuple(bins), first
        self.rows: list[tuple[int, int]] = []
        self.counts: list[list[np.ndarray]] = []
        self.open = self.seen = 0

    @property
    def end(self) -> int:
        """The window after the last one."""
        return self.rows[-1][1] if self.rows else self.first

    def add(self, places: Sequence[np.ndarray]) -> None:
        """Count examples, by the bin of each in every measure."""
        start, total = 0, len(places[0])
        while start < total:
            if not self.rows or self.open >= self.window:
                self._begin_window()
            stop = min(total, start + self.window - self.open)
            for row, found, size in zip(self.counts[-1], places, self.bins, strict=True):
                row += np.bincount(found[start:stop], minlength=size)
            self.open += stop - start
            self.seen += stop - start
            start = stop

    def to_dict(self) -> dict[str, Any]:
        """The state, ready for JSON."""
        counts = [[row.tolist() for row in rows] for rows in self.counts]
        return {"first": self.first, "rows": self.rows, "counts": counts, "open": self.open}

    @classmethod
    def from_dict(cls, state: Mapping[str, Any], window: int, bins: Sequence[int]) -> Life:
        """The life with that state, every field checked.

        Raises:
            AttributeError, KeyError, OverflowError, TypeError, ValueError: It is not what :meth:`to_dict` wrote.
        """
        life = cls(window, bins, state["first"])
        life.rows, life.open = [(start, end) for start, end in state["rows"]], state["open"]
        places = [life.first, *(place for row in life.rows for place in row)]
        if any(type(place) is not int or not 0 <= place < 2**53 for place in [*places, life.open]):
            raise ValueError("rows")
        inner = list(zip([life.first, *(end for _, end in life.rows)], life.rows, strict=False))
        if any(start != before or end <= start for before, (start, end) in inner) or life.open > window:
            raise ValueError("rows")
        for rows in state["counts"]:
            found = [np.array(row, dtype=np.int64) for row in rows]
            if [row.shape for row in found] != [(size,) for size in bins] or len({row.sum() for row in found}) != 1:
                raise ValueError("counts")
            if any((row < 0).any() or (row > 2**53).any() for row in found):
                raise ValueError("counts")
            life.counts.append(found)
        if len(life.counts) != len(life.rows):
            raise ValueError("counts")
        life.seen = sum(int(rows[0].sum()) for rows in life.counts)
        return life

    def _begin_window(self) -> None:
        end = self.end
        self.rows.append((end, end + 1))
        self.counts.append([np.zeros(size, dtype=np.int64) for size in self.bins])
        self.open, size = 0, 1
        while True:
            same = [index for index, (start, stop) in enumerate(self.rows) if stop - start == size]
            pair = next((i for i in same[:-1] if self.rows[i][0] % (2 * size) == 0 and i + 1 in same), None)
            if len(same) <= ROWS or pair is None:
                return
            self.rows[pair] = (self.rows[pair][0], self.rows[pair + 1][1])
            self.counts[pair] = [a + b for a, b in zip(self.counts[pair], self.counts[pair + 1], strict=True)]
            del self.rows[pair + 1], self.counts[pair + 1]
            size *= 2


def since_starts(lives: Sequence[Life], measure: int) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """The counts of one measure before and since every window in which a row of all lives starts.

    Returns:
        Numbers of these windows, shape (starts,); the counts until then and since then, shape (starts, bins).
    """
    places = sorted({0, *(start for life in lives for start, _ in life.rows)})
    inside = [row for life in lives for row in life.rows]
    starts = [place for place in places if not any(start < place < end for start, end in inside)]
    before = np.zeros((len(starts), lives[0].bins[measure]), dtype=np.int64)
    since = before.copy()
    for life in lives:
        for (start, _), rows in zip(life.rows, life.counts, strict=True):
            late = np.array(starts) <= start
            since[late] += rows[measure]
            before[~late] += rows[measure]
    return np.array(starts), before, since
