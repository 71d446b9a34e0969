"""Writing files completely or not at all: to a temporary folder beside the target, then renamed over the target.

A killed process leaves its temporary folder behind, and the next run removes it. A file lock, which the system releases
when a process ends, distinguishes such a folder from one that another process is using.
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
except ImportError:  # Windows: folders of killed processes are not removed
    fcntl = None  # type: ignore[assignment]

__all__ = ["checked_target", "replacing", "working_folder"]

#: Seconds after its creation in which a file may still be without its lock.
YOUNG = 1.0
#: The locked file in a temporary folder.
LOCK = ".bensemble-working"


def checked_target(path: str | os.PathLike[str], verb: str) -> Path:
    """The path to write to, with links resolved, after a check that a file can be written there.

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
    """A temporary path for a file that replaces ``target`` if the block ends without an exception.

    On any exception, also Ctrl-C, the new file is removed and ``target`` is unchanged. The new file gets the
    permissions of the old one, or those of a file made by ``open``.
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
    """A folder for temporary files; folders of killed processes are removed."""
    _clear(Path(tempfile.gettempdir()), "bensemble-working-*")
    with tempfile.TemporaryDirectory(prefix="bensemble-working-") as folder, _locked(Path(folder) / LOCK):
        yield Path(folder)


@contextmanager
def _beside(target: Path) -> Iterator[Path]:
    """A new temporary folder beside ``target``; a folder, because some libraries write several files."""
    _clear(target.parent, f".{glob.escape(target.name)}.*.tmp")
    folder = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    folder.mkdir()
    try:
        with _locked(folder / LOCK):
            yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)


def _clear(parent: Path, pattern: str) -> None:
    """Remove the temporary folders of killed processes."""
    for left in parent.glob(pattern):
        with suppress(OSError):  # it belongs to another user
            if (left / LOCK).exists():
                if _abandoned(left / LOCK):
                    shutil.rmtree(left)
            elif time.time() - left.stat().st_mtime > YOUNG:
                left.rmdir()  # its process was killed before it made the lock file; removes an empty folder only


@contextmanager
def _locked(path: Path) -> Iterator[None]:
    """Create an empty file and lock it until the block or this process ends."""
    descriptor = os.open(path, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666)
    try:
        if fcntl is None:  # Windows cannot rename the folder of an open file
            os.close(descriptor)
        else:
            with suppress(OSError):  # file systems without locks
                fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        if fcntl is not None:
            os.close(descriptor)


def _abandoned(path: Path) -> bool:
    """Whether no process holds the lock of a file that is older than ``YOUNG``."""
    if fcntl is None or time.time() - path.stat().st_mtime < YOUNG:
        return False
    descriptor = os.open(path, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:  # the lock is held, or the file system has no locks
        return False
    finally:
        os.close(descriptor)
    return True


def _flush(path: Path) -> None:
    if path.is_dir() and os.name == "nt":  # Windows cannot open folders
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
