"""Interleaved rounds: the variants take turns, so a machine that slows down slows all of them."""

from __future__ import annotations

import ctypes
import datetime
import json
import platform
import statistics
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch


@dataclass(frozen=True)
class Timing:
    """One variant over all rounds.

    Attributes:
        seconds: Median time of one run.
        ratio: Median over rounds of its time over the reference's time in the same round.
    """

    seconds: float
    ratio: float


def interleave(
    variants: dict[str, Callable[[], Any]], reference: str, rounds: int = 9, least: float = 0.03
) -> dict[str, Timing]:
    """Time every variant in turn, ``rounds`` times, each for at least ``least`` seconds.

    CPU time of the process on one thread, wall time on several.
    """
    clock = time.process_time if torch.get_num_threads() == 1 else time.perf_counter
    repeats: dict[str, int] = {}
    for name, run in variants.items():
        run()  # warm-up: allocations, first-use work
        start = clock()
        run()
        repeats[name] = max(1, round(least / max(clock() - start, 1e-6)))
    times: dict[str, list[float]] = {name: [] for name in variants}
    for _ in range(rounds):
        for name, run in variants.items():
            start = clock()
            for _ in range(repeats[name]):
                run()
            times[name].append((clock() - start) / repeats[name])
    return {
        name: Timing(
            statistics.median(taken),
            statistics.median(mine / its for mine, its in zip(taken, times[reference], strict=True)),
        )
        for name, taken in times.items()
    }


def keep_freed_memory() -> None:
    """Ask the allocator to keep what is freed, where it is glibc's.

    It hands memory back to the kernel when it likes, and the page faults of one variant are then paid by the next.
    """
    if sys.platform == "linux" and platform.libc_ver()[0] == "glibc":
        libc = ctypes.CDLL(None)
        libc.mallopt(-4, 0)  # M_MMAP_MAX: no mapping of its own for a large block
        libc.mallopt(-1, 2**31 - 1)  # M_TRIM_THRESHOLD


def peak_memory(run: Callable[[], Any]) -> int:
    """Peak of the bytes of tensors that one run allocates, from the profiler's allocation events."""
    with torch.profiler.profile(profile_memory=True) as profile:
        kept = run()
    del kept
    current = peak = 0
    for event in profile.profiler.kineto_results.events():
        if event.name() == "[memory]":
            current += event.nbytes()
            peak = max(peak, current)
    return peak


def print_table(header: list[str], rows: list[list[str]]) -> None:
    """A Markdown table."""
    print("| " + " | ".join(header) + " |")
    print("|" + "|".join("---" for _ in header) + "|")
    for row in rows:
        print("| " + " | ".join(row) + " |", flush=True)


def write_json(path: Path | None, figures: Any) -> None:
    """The figures with what they were measured on."""
    if path is None:
        return
    about = {
        "date": datetime.date.today().isoformat(),
        "machine": platform.processor() or platform.machine(),
        "threads": torch.get_num_threads(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    path.write_text(json.dumps({"about": about, "figures": figures}, indent=2) + "\n")
