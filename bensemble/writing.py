"""Files are written whole or not at all: beside the target, flushed to the disk, then renamed over it."""

from __future__ import annotations

import os
import secrets
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from .errors import InvalidTypeError, InvalidValueError

__all__ = ["checked_target", "replacing"]


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
        probe = _create_beside(target)
    except OSError as err:
        raise InvalidValueError(f"{verb}: '{target}' cannot be written, {err.strerror}; choose another path.") from err
    probe.unlink()
    return target


@contextmanager
def replacing(target: Path) -> Iterator[Path]:
    """A temporary file beside ``target`` that takes its place when the block ends well.

    On any exception, Ctrl-C included, the temporary file is removed and ``target`` stays as it was.
    """
    temporary = _create_beside(target)
    try:
        yield temporary
        if target.exists():
            shutil.copymode(target, temporary)
        _flush(temporary)
        os.replace(temporary, target)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    _flush(target.parent)  # the rename itself


def _create_beside(target: Path) -> Path:
    """A new empty file in the folder of ``target``, with the permissions that a plain ``open`` would give it."""
    temporary = target.with_name(f".{target.name}.{secrets.token_hex(4)}.tmp")
    os.close(os.open(temporary, os.O_CREAT | os.O_EXCL | os.O_WRONLY, 0o666))
    return temporary


def _flush(path: Path) -> None:
    if path.is_dir() and os.name == "nt":  # Windows opens no folders
        return
    descriptor = os.open(path, os.O_RDONLY if path.is_dir() else os.O_RDWR)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
