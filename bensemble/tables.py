"""Reports as text: rows of cells with their columns aligned, in a terminal and in a notebook."""

from __future__ import annotations

import html
from collections.abc import Container, Sequence

__all__ = ["Printed", "text_table"]


class Printed:
    """Prints in a notebook as it prints in a terminal, with its columns aligned."""

    def _repr_html_(self) -> str:
        return f"<pre>{html.escape(str(self))}</pre>"


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
