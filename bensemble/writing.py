"""Files are written whole or not at all: beside the target, flushed to the disk, then renamed over it.

What a process was writing when it was killed stays behind. A lock that the system takes away with the process tells it
from what another process is writing now, and the next run removes it.
"""

from __future__ import annotations

import glob
import os
import secrets
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from .errors import InvalidTypeError, InvalidValueError

try:
    import fcntl
except ImportError:  # Windows: what was left behind stays
    fcntl = None  # type: ignore[assignment]

__all__ = ["checked_target", "replacing", "working_folder"]

#: Seconds in which a new file takes its lock.
YOUNG = 1.0
#: The file in a working folder that its process holds.
LOCK = ".bensemble-working"


def checked_target(path: str | os.PathLike[str], verb: str) -> Path:
    """The path to write to, with links followed, after making sure that a file can be written there.

    Raises:
        InvalidTypeError: ``path`` is not a path.
        InvalidValueError: The folder does not exist, or the folder or the file cannot be written.
    """
    if not isinstance(path, (str, os.PathLike)):
        raise InvalidTypeError(f"{verb}: path must be a string or a Path, got {type(path).__name__}.")
    target = Path(os.path.realpath(path))
    if target.is_dir():
        raise InvalidValueError(f"{verb}: path '{path}' is a folder; give the file in it a name.")
    if not target.parent.is_dir():
        raise InvalidValueError(f"{verb}: folder '{target.parent}' does not exist; create it first.")
    if target.exists() and not os.access(target, os.W_OK):
        raise InvalidValueError(f"{verb}: file '{target}' is read-only; choose another path or make it writable.")
    try:
        with _beside(target):
            return target
    except OSError as err:
        raise InvalidValueError(f"{verb}: '{target}' cannot be written, {err.strerror}; choose another path.") from err


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A temporary file beside ``target`` that takes its place when the block ends well.

    On any exception, Ctrl-C included, the temporary file is removed and ``target`` stays as it was.
    """
    with _beside(target) as temporary:
        yield temporary
        if target.exists():
            shutil.copymode(target, temporary)
        _flush(temporary)
        os.replace(temporary, target)
    _flush(target.parent)  # the rename itself


@contextmanager
def working_folder() -> Iterator[Path]:
    """A folder for files in between; those of processes that were killed are removed."""
    for left in Path(tempfile.gettempdir()).glob("bensemble-working-*"):
        with suppress(OSError):  # somebody else's
            if _abandoned(left / LOCK):
                shutil.rmtree(left)
    with tempfile.TemporaryDirectory(prefix="bensemble-working-") as folder, _locked(Path(folder) / LOCK):
        yield Path(folder)


@contextmanager
def _beside(target: Path) -> Iterator[Path]:
    """A new empty file in the folder of ``target``, with the permissions that a plain ``open`` would give it.

    It is removed at the end where it is still there, with those that killed processes left for the same target.
    """
    for left in target.parent.glob(f".{glob.escape(target.name)}.*.tmp"):
        with suppress(OSError):
            if _abandoned(left):
                left.unlink()
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    with _locked(temporary):
        try:
            yield temporary
        finally:
            temporary.unlink(missing_ok=True)


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """A new empty file that is locked as long as the block, or this process, lives."""
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    try:
        if fcntl is None:  # an open file could not be renamed there
            os.close(descriptor)
        else:
            with suppress(OSError):  # file systems without locks
                fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        if fcntl is not None:
            os.close(descriptor)


def _abandoned(path: Path) -> bool:
    """Whether no process holds the lock of a file; a young one may be about to take it."""
    if fcntl is None or time.time() - path.stat().st_mtime < YOUNG:
        return False
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # held, or there are no locks
        return False
    finally:
        os.close(descriptor)
    return True


def _flush(path: Path) -> None:
    if path.is_dir() and os.name == "nt":  # Windows opens no folders
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
