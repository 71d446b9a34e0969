"""Reports as text: rows of cells with their columns aligned."""

from __future__ import annotations

from collections.abc import Container, Sequence

__all__ = ["text_table"]


def text_table(rows: Sequence[Sequence[str]], right: Container[int] = (), indent: str = "") -> list[str]:
    """The lines of a table, its columns two spaces apart.

    Args:
        rows: The cells of each line, the header first where there is one; all lines have the same number of cells.
        right: Indices of the columns that are aligned to the right, as numbers are. The others are aligned to the left.
        indent: Text before each line.
    """
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    lines = []
    for row in rows:
        cells = [
            cell.rjust(width) if index in right else cell.ljust(width)
            for index, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        lines.append((indent + "  ".join(cells)).rstrip())
    return lines
