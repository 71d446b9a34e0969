"""What it takes to trust a file: its digest, and how a value or an error from it is shown."""

from __future__ import annotations

import hashlib
import io
import os
from numbers import Integral
from pathlib import Path
from typing import Any

__all__ = [
    "DIGEST_HEAD",
    "DIGEST_KEY",
    "UncertaintyFileError",
    "check_count",
    "check_digest",
    "literal",
    "message",
    "opened",
]

#: How a file of ``export_onnx`` begins: a metadata entry as protobuf writes it, up to its value, the 64 digits of the
#: digest of all bytes that follow. A tool that rewrites the file moves the entry to the end.
DIGEST_KEY = "bensemble.sha256"
DIGEST_HEAD = b"\x72\x54\x0a\x10" + DIGEST_KEY.encode() + b"\x12\x40"


class UncertaintyFileError(ValueError):
    """This module cannot read the file as an uncertainty file."""


def opened(file: Any) -> tuple[str, Path | bytes]:
    """How messages call a file, and its path or its bytes.

    Args:
        file: A path, the bytes of a file, or a file object that is open for reading bytes.

    Raises:
        FileNotFoundError: There is no such file.
        TypeError: It is something else, or the file object gives text.
    """
    if isinstance(file, (str, os.PathLike)):
        path = Path(file)
        if not path.is_file():
            raise FileNotFoundError(f"UncertaintySession: there is no file '{path}'; check the path.")
        return str(path), path
    if isinstance(file, (bytes, bytearray, memoryview)):
        return f"{memoryview(file).nbytes} bytes", bytes(file)
    read = getattr(file, "read", None)
    data = read() if callable(read) else None
    if not isinstance(data, bytes):
        got = type(file).__name__ if data is None else f"a file of {type(data).__name__}"
        raise TypeError(
            f"UncertaintySession: file must be a string, a Path, bytes, or a file opened with mode 'rb', got {got}."
        )
    return str(getattr(file, "name", "file")), data


def check_digest(file: str | os.PathLike[str] | bytes) -> None:
    """Compare a file, by its path or bytes, with the digest that ``export_onnx`` wrote into it; other files pass.

    Raises:
        UncertaintyFileError: The digest does not match.
    """
    with io.BytesIO(file) if isinstance(file, bytes) else open(file, "rb") as data:
        head, digest = data.read(len(DIGEST_HEAD) + 64), hashlib.sha256()
        if DIGEST_KEY.encode() not in head:
            return
        while block := data.read(2**20):
            digest.update(block)
    if head != DIGEST_HEAD + digest.hexdigest().encode():
        raise UncertaintyFileError("other bytes than were written")


def check_count(verb: str, name: str, value: Any) -> None:
    """Refuse what is no whole number of at least 1."""
    if isinstance(value, bool) or not isinstance(value, Integral) or value < 1:
        raise ValueError(f"{verb}: {name} must be a whole number of at least 1, got {literal(value)}.")


def literal(text: Any) -> str:
    """Text from a file as a short literal without control characters."""
    literal = ascii(text)
    return literal if len(literal) <= 80 else f"{literal[:76]}...{literal[-1]}"


def message(err: BaseException) -> str:
    """The message of an exception in one short line."""
    words = " ".join(str(err).split()) or type(err).__name__
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in words[:300]).rstrip(".")
