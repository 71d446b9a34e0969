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

from ..errors import InvalidTypeError, InvalidValueError

try:
    import fcntl
except ImportError:  # Windows: what was left behind stays
    fcntl = None  # type: ignore[assignment]

__all__ = ["checked_target", "replacing", "working_folder"]

#: Seconds in which a new file takes its lock.
YOUNG = 1.0
#: The file in a temporary folder that its process holds.
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
    """A path to write a file to that takes the place of ``target`` when the block ends well.

    On any exception, Ctrl-C included, the new file is removed and ``target`` stays as it was. The new file has the
    permissions of the old one, or those that a plain ``open`` would give it, whatever a library gave it.
    """
    with _beside(target) as folder:
        new = folder / target.name
        yield new
        shutil.copymode(target if target.exists() else folder / LOCK, new)
        _flush(new)
        os.replace(new, target)
    _flush(target.parent)  # the rename itself


@contextmanager
def working_folder() -> Iterator[Path]:
    """A folder for files in between; those of processes that were killed are removed."""
    _clear(Path(tempfile.gettempdir()), "bensemble-working-*")
    with tempfile.TemporaryDirectory(prefix="bensemble-working-") as folder, _locked(Path(folder) / LOCK):
        yield Path(folder)


@contextmanager
def _beside(target: Path) -> Iterator[Path]:
    """A new folder in that of ``target``: libraries leave files of their own beside the one that they write."""
    _clear(target.parent, f".{glob.escape(target.name)}.*.tmp")
    folder = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    folder.mkdir()
    try:
        with _locked(folder / LOCK):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _clear(parent: Path, pattern: str) -> None:
    """Remove the folders that killed processes left."""
    for left in parent.glob(pattern):
        with suppress(OSError):  # somebody else's
            if (left / LOCK).exists():
                if _abandoned(left / LOCK):
                    shutil.rmtree(left)
            elif time.time() - left.stat().st_mtime > YOUNG:
                left.rmdir()  # killed before it had a lock; only an empty folder goes


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
