"""Mean and standard error over seeds, as a Markdown table."""

from __future__ import annotations

import statistics
from typing import TypeAlias

from rounds import print_table

#: What is given in percent or points, and its digits; other columns have three significant digits or more.
DIGITS = {
    "accuracy": 2, "nll": 4, "ece": 2, "brier": 4, "risk": 2, "forwards": 0, "seconds": 2, "rmse": 3,
    "inside": 1, "width": 3, "conformal inside": 1, "conformal width": 3,
}  # fmt: skip
#: Printed without an error.
PLAIN = ("forwards", "seconds")
#: By seed, method and column.
Seeds: TypeAlias = list[dict[str, dict[str, float]]]


def show(
    title: str, seeds: list[dict[str, dict[str, float]]], unit: str = "seed"
) -> dict[str, dict[str, tuple[float, float]]]:
    """Print the table of a task; also what it shows: by method and column, mean and standard error.

    Args:
        title: Printed above, with the number of seeds.
        seeds: For each seed the columns of each method, which may lack some.
        unit: What a seed is called.
    """
    columns = list(dict.fromkeys(column for row in seeds[0].values() for column in row))
    figures, rows = {}, []
    for method in seeds[0]:
        values = {c: [seed[method][c] for seed in seeds] for c in columns if c in seeds[0][method]}
        figures[method] = {c: (statistics.mean(found), _error(found)) for c, found in values.items()}
        rows.append([method, *(_cell(c, *figures[method][c]) if c in values else "" for c in columns)])
    print(f"\n{title}, {len(seeds)} {unit}{'s' * (len(seeds) > 1)}\n")
    print_table(["method", *columns], rows)
    return figures


def differences(seeds: Seeds, column: str, pairs: list[tuple[str, str]]) -> dict[str, tuple[float, float]]:
    """Differences of a column between two methods, paired by seed, with standard errors."""
    found = {}
    for first, second in pairs:
        gaps = [seed[first][column] - seed[second][column] for seed in seeds]
        found[f"{first} - {second}"] = statistics.mean(gaps), _error(gaps)
    print(f"\nDifferences in {column}, paired by seed\n")
    print_table(["difference", column], [[name, f"{gap:+.4f} ± {error:.4f}"] for name, (gap, error) in found.items()])
    return found


def _error(values: list[float]) -> float:
    return statistics.stdev(values) / len(values) ** 0.5 if len(values) > 1 else 0.0


def _cell(column: str, mean: float, error: float) -> str:
    digits = DIGITS.get(column, 4)
    return f"{mean:.{digits}f}" if column in PLAIN else f"{mean:.{digits}f} ± {error:.{digits}f}"
