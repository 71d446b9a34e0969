"""The census: ``python -m tests.hostile [number of files]``, one line for each loader and kind of damage."""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections import Counter, defaultdict
from pathlib import Path
from typing import Any

from .loaders import LOADERS
from .pool import Case, run_cases
from .sources import make_sources
from .worker import mutations_of

__all__ = ["BAD", "cases", "faults"]

#: Outcomes that must not occur.
BAD = ("wrong error", "unreadable error", "crash", "hang")
MOST_MEMORY = 2**30


def cases(number: int) -> list[Case]:
    """At least so many cases, as many of every kind of damage of every loader."""
    kinds = [(name, mutation) for name, loader in LOADERS.items() for mutation in mutations_of(loader.source)]
    each = -(-number // len(kinds))
    return [Case(name, mutation, seed) for name, mutation in kinds for seed in range(each)]


def faults(answer: dict[str, Any]) -> list[str]:
    """What is wrong with an answer; empty for a good one."""
    found = [answer["outcome"]] if answer["outcome"] in BAD else []
    found += [f"ran or wrote: {answer[key]}" for key in ("seen", "left") if answer.get(key)]
    if answer.get("peak", 0) > MOST_MEMORY:
        found.append(f"{answer['peak'] / 2**20:.0f} MiB")
    return found


def main(number: int) -> int:
    """Run the census, print it, and give the number of faults."""
    table: dict[tuple[str, str], Counter[str]] = defaultdict(Counter)
    total, slowest, largest, bad, start = 0, 0.0, 0, 0, time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        make_sources(Path(folder))
        for case, answer in run_cases(Path(folder), cases(number)):
            table[case[:2]][answer["outcome"]] += 1
            total += 1
            slowest, largest = max(slowest, answer.get("seconds", 0)), max(largest, answer.get("peak", 0))
            wrong = faults(answer)
            if wrong:
                bad += 1
                print(json.dumps({**case._asdict(), **answer, "faults": wrong}), file=sys.stderr, flush=True)
    outcomes = ("refused", "loaded equal", "loaded different", *BAD)
    print("| loader | damage | " + " | ".join(outcomes) + " |")
    print("|---|---|" + "---:|" * len(outcomes))
    for (loader, mutation), counts in table.items():
        print(f"| {loader} | {mutation} | " + " | ".join(str(counts[name]) for name in outcomes) + " |")
    print(
        f"\n{total} files, {bad} faults; the slowest took {slowest:.2f} s of processor time, the largest process had "
        f"{largest / 2**20:.0f} MiB; {time.monotonic() - start:.0f} s in all"
    )
    return bad


if __name__ == "__main__":
    sys.exit(bool(main(int(sys.argv[1]) if len(sys.argv) > 1 else 20_000)))
