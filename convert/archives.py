"""Zip archives from outside: what they would unpack to is known before anything is unpacked."""

from __future__ import annotations

import math
import zipfile
from pathlib import Path
from typing import IO

import numpy as np
from numpy.lib import format as npy

from bensemble.errors import shown

__all__ = ["check_unpacked", "load_arrays"]

#: What an archive may unpack to: so many bytes, or so many times its own size where that is more.
SMALL, RATIO = 256 * 2**20, 100


def check_unpacked(path: Path) -> None:
    """Refuse an archive that is damaged, or unpacks to far more than real data does.

    Raises:
        ValueError: The fact, without the path.
    """
    try:
        with zipfile.ZipFile(path) as archive:
            total, size = sum(info.file_size for info in archive.infolist()), path.stat().st_size
    except (zipfile.BadZipFile, NotImplementedError, OverflowError) as err:
        raise ValueError(f"it is no whole zip archive, {err}") from err
    if total > max(SMALL, RATIO * size):
        raise ValueError(f"its {size} bytes would unpack to {total}")


def load_arrays(path: Path) -> dict[str, np.ndarray]:
    """The numeric arrays of an .npz file.

    Each is as large as its header says before memory is taken for it, and nothing is unpickled.

    Raises:
        FileNotFoundError: There is no such file.
        ValueError: It is something else; the fact, without the path.
    """
    if path.exists() and not path.is_file():
        raise ValueError("it is no file")
    try:
        check_unpacked(path)
        with zipfile.ZipFile(path) as archive:
            found: dict[str, np.ndarray] = {}
            for info in archive.infolist():
                name = info.filename.removesuffix(".npy")
                if name in found:
                    raise ValueError(f"{name[:80]!r} comes twice")
                with archive.open(info) as member:
                    _check_array(name, member, info.file_size)
                with archive.open(info) as member:
                    found[name] = npy.read_array(member, allow_pickle=False)
            return found
    except FileNotFoundError:
        raise
    except Exception as err:  # zipfile, zlib and numpy's reader of headers raise a dozen kinds
        raise ValueError(shown(err, 200) or type(err).__name__) from err


def _check_array(name: str, member: IO[bytes], size: int) -> None:
    """Compare what the header of an array promises with the bytes that follow."""
    version = npy.read_magic(member)
    readers = {(1, 0): npy.read_array_header_1_0, (2, 0): npy.read_array_header_2_0}
    if version not in readers:
        raise ValueError(f"{name[:80]!r} is an array of format version {version}")
    shape, _, dtype = readers[version](member)
    if dtype.kind not in "biufc":
        raise ValueError(f"{name[:80]!r} holds {dtype.name[:80]}, no numbers")
    held = size - member.tell()
    if min(shape, default=0) < 0 or math.prod(shape) * dtype.itemsize != held:
        raise ValueError(f"{name[:80]!r} should be {dtype} of shape {str(shape)[:80]}, and has {held} bytes")
