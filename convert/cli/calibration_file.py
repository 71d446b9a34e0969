"""A calibration as ``bensemble.Calibration.to_json`` wrote it to a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bensemble import Calibration

__all__ = ["read_calibration"]

#: Bytes of such a file; it has about five thousand.
LONGEST = 2**20


def read_calibration(path: Path) -> Calibration:
    """The calibration in a JSON file.

    Raises:
        InvalidValueError: The file cannot be read, or holds something else.
    """
    from bensemble import Calibration
    from bensemble.errors import InvalidValueError, shown

    try:
        if path.exists() and not path.is_file():
            raise ValueError("no file")
        with path.open("rb") as file:
            text = file.read(LONGEST + 1)
        if len(text) > LONGEST:
            raise ValueError(f"more than {LONGEST} bytes")
        return Calibration.from_json(text.decode())
    except (OSError, ValueError) as err:
        raise InvalidValueError(
            f"calibration: '{path}' must hold what Calibration.to_json wrote, got {shown(err, 300)}"
        ) from err
