"""The command line, `bensemble plan | export | inspect | compress | report | demo | doctor`.

Here words become arguments of public functions, and results and errors become text; nothing else may import from here.
What a model, a posterior or an ONNX file is lies in the other folders: no mathematics and no graphs here.
"""

from __future__ import annotations

import sys

__all__ = ["main"]


def main() -> None:
    """Run the command line of this process."""
    try:
        from .app import app
    except ModuleNotFoundError as err:
        cure = "run `pip install '.[cli]'` in the source tree"
        sys.exit(f"Error: the command line needs '{err.name}', which is not installed; {cure}.")
    app(prog_name="bensemble")
