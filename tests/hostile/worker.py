"""A process that reads damaged files one after another, and says for each what happened: ``python -m`` this.

The operating system and an audit hook watch: memory, processor time, processes started, files opened for writing.
A crash or a hang ends the process, which its :mod:`pool` sees.
"""

from __future__ import annotations

import json
import os
import random
import resource
import shutil
import signal
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import torch

from .formats import INSIDE
from .loaders import LOADERS
from .mutations import BYTES

__all__ = ["damaged", "mutations_of"]

#: Processor seconds after which a load counts as hanging; the process is ended.
SECONDS = 5
#: Address space beyond what the process has at the start, so that a bug here cannot take the machine down.
MOST_BYTES = 4 * 2**30

#: Audit events that mean that a file made us run something.
RUNNING = ("os.system", "os.exec", "os.posix_spawn", "os.fork", "os.forkpty", "subprocess.Popen", "pty.spawn")
RUNNING += ("socket.connect", "socket.bind", "ctypes.dlopen", "pickle.find_class", "exec", "webbrowser.open")
#: And that it made us change the disk.
CHANGING = ("os.mkdir", "os.remove", "os.rename", "os.rmdir", "os.link", "os.symlink", "os.truncate", "os.chmod")
CHANGING += ("shutil.copyfile", "shutil.move", "shutil.rmtree", "shutil.unpack_archive", "tempfile.mkstemp")


#: Where the interpreter and its packages are: what is executed from there was not in a file.
INSTALLED = Path(os.__file__).parent


class Watch:
    """What the interpreter's audit hook saw while it was on."""

    def __init__(self) -> None:
        self.on = False
        self.seen: list[str] = []
        sys.addaudithook(self._hook)

    def _hook(self, event: str, arguments: tuple[Any, ...]) -> None:
        if not self.on:
            return
        writes = event == "open" and isinstance(arguments[2], int) and arguments[2] & (os.O_WRONLY | os.O_RDWR)
        imports = event == "exec" and Path(arguments[0].co_filename).is_relative_to(INSTALLED)
        if writes or (event in RUNNING and not imports) or event in CHANGING:
            self.seen.append(f"{event} {str(arguments)[:100]}")


def mutations_of(source: str) -> dict[str, Any]:
    """The ways to damage a source file, by name."""
    return BYTES | INSIDE[Path(source).suffix]


def damaged(sources: Path, loader: str, mutation: str, seed: int) -> bytes:
    """The damaged bytes of a case."""
    source = LOADERS[loader].source
    rng = random.Random(f"{source} {mutation} {seed}")
    return mutations_of(source)[mutation]((sources / source).read_bytes(), rng)


def main(sources: Path, sandbox: Path) -> None:
    """Answer each case on standard input with a line on standard output."""
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # what a library prints must not pass for an answer
    whole = {name: loader.load(sources / loader.source) for name, loader in LOADERS.items()}
    watch, folder = Watch(), sandbox / "case"
    used = int(Path("/proc/self/statm").read_text().split()[0]) * resource.getpagesize()
    resource.setrlimit(resource.RLIMIT_AS, (used + MOST_BYTES, -1))
    print("ready", file=answers, flush=True)
    for line in sys.stdin:
        case = json.loads(line)
        loader = LOADERS[case["loader"]]
        folder.mkdir()
        for shard in sources.glob("shard-*"):
            shutil.copy(shard, folder)
        path = folder / loader.source
        path.write_bytes(damaged(sources, **case))
        answer = _load(loader, path, watch, whole.get(case["loader"], ""))
        extra = [p.name for p in sandbox.iterdir() if p != folder]
        extra += [p.name for p in folder.iterdir() if p != path and not p.name.startswith("shard-")]
        print(json.dumps({**answer, "left": extra}), file=answers, flush=True)
        shutil.rmtree(folder)


def _load(loader: Any, path: Path, watch: Watch, whole: str) -> dict[str, Any]:
    Path("/proc/self/clear_refs").write_text("5")  # from here on a new peak
    watch.seen, error, start = [], None, time.process_time()
    signal.setitimer(signal.ITIMER_PROF, SECONDS)  # SIGPROF ends the process
    watch.on = True
    try:
        outcome = "loaded equal" if loader.load(path) == whole else "loaded different"
    except loader.refuses as err:
        outcome, error = "refused", err
    except Exception as err:
        outcome, error = "wrong error", err
    watch.on = False
    signal.setitimer(signal.ITIMER_PROF, 0)
    message = "" if error is None else str(error)
    if outcome == "refused" and not _readable(message):
        outcome = "unreadable error"
    status = Path("/proc/self/status").read_text()
    return {
        "outcome": outcome,
        "message": f"{type(error).__name__}: {message[:600]}" if error is not None else "",
        "seconds": time.process_time() - start,
        "peak": 1024 * int(status.split("VmHWM:")[1].split()[0]),
        "seen": watch.seen[:3],
    }


def _readable(message: str) -> bool:
    """A printable line of at most 1,000 characters; a list of mismatches has a line for each of at most ten."""
    lines = message.splitlines()
    listed = all(line.startswith(("  - ", "  ... and ")) for line in lines[1:])
    fits = 1 <= len(lines) <= 12 and all(len(line) <= 1000 and line.isprintable() for line in lines)
    return listed and fits


if __name__ == "__main__":
    main(Path(sys.argv[1]), Path(sys.argv[2]))
