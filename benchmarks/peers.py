"""Training steps of this library and of its peers, each over the deterministic step in the same rounds.

Every library runs in a process of its own, one after the other. `make bench-peers` installs them beside this one.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

sys.path.insert(0, str(Path(__file__).parent / "libraries"))

from adapters import LIBRARIES, PUBLISHED
from rounds import print_table, write_json

OURS = next(iter(LIBRARIES))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--peers", type=Path, required=True, help="folder with the peers' packages")
    parser.add_argument("--published", type=Path, required=True, help="folder with the published bensemble")
    parser.add_argument("--rounds", type=int, default=9)
    parser.add_argument("--only", default="", help="only cases whose name contains this")
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path, help="image of the steps")
    options = parser.parse_args()
    found = {library: measured(library, options) for library in LIBRARIES}
    cases = list(found[OURS])
    for title, cell in (
        ("Step", lambda row, _: f"{row['step']:.2f}"),
        ("Step with fused Adam", lambda row, _: f"{row['fused step']:.2f}"),
        ("Memory of a step", lambda row, _: f"{row['memory']:.2f}"),
        ("Variance of the gradients of mean / spread, over that of ours, local", _variance),
    ):
        print(f"\n{title}\n")
        rows = [
            [case, *(_cell(cell, found[library].get(case), found[OURS][case]) for library in LIBRARIES)]
            for case in cases
        ]
        print_table(["case", *LIBRARIES], rows)
    for library, case, row in ((x, c, r) for x, rows in found.items() for c, r in rows.items() if "error" in r):
        print(f"\n{library}, {case}: {row['error']}")
    write_json(options.json, found)
    if options.plot:
        plot(found, options.plot)


def measured(library: str, options: argparse.Namespace) -> dict[str, Any]:
    """The figures of one library, from its own process."""
    command = [sys.executable, "-W", "ignore", str(Path(__file__).parent / "libraries" / "measure.py"), library]
    command += ["--rounds", str(options.rounds), "--only", options.only]
    place = options.published if library == PUBLISHED else options.peers
    path = "" if library.startswith("ours") else str(place.resolve())
    done = subprocess.run(command, env=os.environ | {"PYTHONPATH": path}, stdout=subprocess.PIPE, text=True, check=True)
    return json.loads(done.stdout.splitlines()[-1])


def plot(found: dict[str, dict[str, Any]], path: Path) -> None:
    """The ratios of the default step as bars, one group for each case."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    cases = list(found[OURS])
    figure, axis = plt.subplots(figsize=(11, 4), layout="constrained")
    width = 0.8 / len(LIBRARIES)
    for k, library in enumerate(LIBRARIES):
        heights = [found[library].get(case, {}).get("step", 0.0) for case in cases]
        axis.bar([i + (k - len(LIBRARIES) / 2) * width for i in range(len(cases))], heights, width, label=library)
    axis.axhline(1.0, color="gray", linewidth=0.8)
    axis.set_xticks(range(len(cases)), [case.replace(", ", "\n", 1) for case in cases], fontsize=8)
    axis.set_ylabel("step over the deterministic step")
    axis.legend(fontsize=8, ncols=2)
    figure.savefig(path, dpi=150)


def _cell(cell: Any, row: dict[str, Any] | None, ours: dict[str, Any]) -> str:
    return "-" if row is None or "error" in row or "error" in ours else cell(row, ours)


def _variance(row: dict[str, Any], ours: dict[str, Any]) -> str:
    return " / ".join(f"{row['variance'][kind] / ours['variance'][kind]:.3g}" for kind in ("mean", "spread"))


if __name__ == "__main__":
    main()
