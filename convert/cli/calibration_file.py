"""A calibration as ``bensemble.Calibration.to_json`` wrote it to a file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from bensemble import Calibration

__all__ = ["read_calibration"]


def read_calibration(path: Path) -> Calibration:
    """The calibration in a JSON file.

    Raises:
        InvalidValueError: The file cannot be read, or holds something else.
    """
    from bensemble import Calibration
    from bensemble.errors import InvalidValueError

    try:
        return Calibration.from_json(path.read_text())
    except (OSError, ValueError) as err:
        raise InvalidValueError(
            f"calibration: '{path}' must hold what Calibration.to_json wrote, got {str(err).splitlines()[0]}"
        ) from err
