"""A worker process that is started again whenever a file ends it, and a watchdog for one that does not answer."""

from __future__ import annotations

import json
import os
import select
import signal
import subprocess
import sys
import tempfile
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any, NamedTuple

__all__ = ["Case", "run_cases"]

#: Wall-clock seconds without an answer: a deadlock, which takes no processor time. Generous, for a busy machine.
SILENCE = 120

ROOT = Path(__file__).parents[2]


class Case(NamedTuple):
    """One damaged file."""

    loader: str
    mutation: str
    seed: int


class Worker:
    """One process."""

    def __init__(self, sources: Path) -> None:
        self.sandbox = tempfile.TemporaryDirectory()
        command = [sys.executable, "-m", "tests.hostile.worker", str(sources), self.sandbox.name]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        self.process = subprocess.Popen(
            command, cwd=ROOT, env=environment, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
        )
        if self.process.stdout.readline() != "ready\n":
            raise RuntimeError("the worker does not start")

    def answer(self, case: Case) -> dict[str, Any]:
        """What happened to a case; a dead or silent process is an answer, too."""
        print(json.dumps(case._asdict()), file=self.process.stdin, flush=True)
        if not select.select([self.process.stdout], [], [], SILENCE)[0]:
            self.process.kill()
            return {"outcome": "hang", "message": f"no answer for {SILENCE} s"}
        line = self.process.stdout.readline()
        if line:
            return json.loads(line)
        code = self.process.wait()
        name = signal.Signals(-code).name if code < 0 else f"exit code {code}"
        return {"outcome": "hang" if code == -signal.SIGPROF else "crash", "message": name}

    def close(self) -> None:
        """End the process and remove its folder."""
        self.process.stdin.close()
        self.process.kill()
        self.process.wait()
        self.process.stdout.close()
        self.sandbox.cleanup()


def run_cases(sources: Path, cases: Iterable[Case]) -> Iterator[tuple[Case, dict[str, Any]]]:
    """Every case with what happened, in order.

    Args:
        sources: A folder that ``make_sources`` filled.
        cases: What to do.
    """
    worker = Worker(sources)
    try:
        for case in cases:
            answer = worker.answer(case)
            yield case, answer
            if answer["outcome"] in ("crash", "hang"):
                worker.close()
                worker = Worker(sources)
    finally:
        worker.close()
