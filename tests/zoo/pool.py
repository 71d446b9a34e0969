"""Each model in a process of its own, with limits on time and memory, a few at a time.

Processes are forked from a server that has imported the library once, so that a model costs its own seconds and not
those of the import; what a model breaks stays in its process.
"""

from __future__ import annotations

import multiprocessing
import os
import tempfile
import time
import traceback
from collections.abc import Callable, Iterator, Sequence
from multiprocessing.connection import Connection, wait
from pathlib import Path
from typing import Any

from .entries import LIBRARIES, Entry
from .result import Result

GIB = 1024**3


def run_entries(
    listed: Sequence[Entry], jobs: int = 2, seconds: float = 600, gib: float = 10, options: dict[str, Any] | None = None
) -> Iterator[Result]:
    """Check the entries of one library, yielding results as they come.

    Args:
        listed: Entries of one library.
        jobs: Processes at a time; an entry marked ``alone`` runs by itself with twice the limits.
        seconds: Limit of time for one model.
        gib: Limit of memory for one model, in GiB of private memory.
        options: Keyword arguments of :func:`tests.zoo.checks.check_entry`.
    """
    context = multiprocessing.get_context("forkserver")
    modules = [f"{__package__}.libraries.{LIBRARIES[listed[0].library]}", f"{__package__}.checks"]
    context.set_forkserver_preload([*modules, "torch.distributed.tensor", "torch._dynamo"])
    for some, slots in (
        ([entry for entry in listed if not entry.alone], jobs),
        ([entry for entry in listed if entry.alone], 1),
    ):
        waiting, running = list(some), []
        factor = 1 if slots == jobs and some and not some[0].alone else 2
        while waiting or running:
            while waiting and len(running) < slots:
                running.append(_Job(context, waiting.pop(0), seconds * factor, int(gib * factor * GIB), options or {}))
            wait([job.process.sentinel for job in running], timeout=0.5)
            for job in list(running):
                result = job.poll()
                if result is not None:
                    running.remove(job)
                    yield result


class _Job:
    """One running process."""

    def __init__(self, context: Any, entry: Entry, seconds: float, limit: int, options: dict[str, Any]) -> None:
        self.entry = entry
        self.deadline = time.monotonic() + seconds
        self.seconds = seconds
        self.log = Path(tempfile.mkstemp(suffix=".log")[1])
        self.receiver, sender = context.Pipe(duplex=False)
        self.process = context.Process(
            target=_work, args=(entry.key, str(self.log), limit, options, sender), daemon=True
        )
        self.process.start()
        sender.close()

    def poll(self) -> Result | None:
        """The result, or None while the process still runs."""
        if self.process.is_alive() and time.monotonic() < self.deadline and not self.receiver.poll():
            return None
        late = self.process.is_alive() and not self.receiver.poll()
        result = Result(self.entry.key, self.entry.family)
        try:
            if self.receiver.poll():
                result = Result.from_json(self.receiver.recv())
            elif late:
                result.failed["process"] = f"took more than {self.seconds:.0f} s"
        except EOFError:
            pass
        if late:
            self.process.kill()
        self.process.join()
        if not late and not result.passed and not result.failed:
            tail = self.log.read_text(errors="replace")[-800:]
            result.failed["process"] = f"ended with exit code {self.process.exitcode}: {tail}"
        self.log.unlink()
        self.process.close()
        return result


def _work(key: str, log: str, limit: int, options: dict[str, Any], sender: Connection) -> None:
    """Body of the process."""
    import resource

    descriptor = os.open(log, os.O_WRONLY)
    os.dup2(descriptor, 1)
    os.dup2(descriptor, 2)
    resource.setrlimit(resource.RLIMIT_DATA, (limit, limit))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    sender.send(check(key, options).to_json())
    sender.close()


def check(key: str, options: dict[str, Any]) -> Result:
    """All checks on one model in this process."""
    import resource

    import torch

    from .checks import check_entry
    from .entries import entry

    torch.set_num_threads(1)
    start = time.monotonic()
    found = entry(key)
    result = Result(key, found.family)
    checker: Callable[..., None] = check_entry
    try:
        checker(found, result, **options)
    except Exception as err:
        where = "".join(traceback.format_exception(err)[-6:])
        result.failed["process"] = f"{type(err).__name__}: {err}"[:500] + "\n" + where[-1500:]
    result.facts["seconds"] = round(time.monotonic() - start, 1)
    result.facts["peak_mib"] = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss // 1024
    return result
