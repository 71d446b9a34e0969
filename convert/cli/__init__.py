"""The command line: `bensemble demo`, `plan`, `export`, `inspect`."""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line of this process."""
    try:
        from .app import app
    except ModuleNotFoundError as err:
        sys.exit(f"Error: the command line needs '{err.name}', which is not installed; run `pip install typer rich`.")
    app(prog_name="bensemble")
