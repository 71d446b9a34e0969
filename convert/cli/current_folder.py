"""The current folder as a place to import from, used only when a model in it is named.

The folder's modules come before installed ones, as in `python -m`, with one difference: names that Python, torch or
bensemble itself needs keep their meaning, so that a file `onnx.py` or `queue.py` lying about breaks nothing.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Sequence
from importlib.machinery import ModuleSpec, PathFinder
from pathlib import Path
from types import ModuleType

__all__ = ["FolderFinder", "local_source", "make_importable"]

#: Top-level names that bensemble imports, now or later.
OURS = frozenset(
    [
        *("bensemble", "convert", "google", "ml_dtypes", "numpy", "onnx", "onnx_ir", "onnxruntime", "onnxscript"),
        *("rich", "safetensors", "torch", "typer"),
    ]
)


class FolderFinder:
    """Finds top-level modules in one folder, except names that are taken."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder

    def find_spec(
        self, name: str, path: Sequence[str] | None = None, target: ModuleType | None = None
    ) -> ModuleSpec | None:
        """The spec of ``folder/name.py`` or ``folder/name/__init__.py``."""
        if path is not None or is_taken(name):
            return None
        return _regular(PathFinder.find_spec(name, [str(self.folder)]))


def make_importable(folder: Path) -> None:
    """Let imports find the modules of a folder, from now on."""
    if not any(isinstance(finder, FolderFinder) and finder.folder == folder for finder in sys.meta_path):
        sys.meta_path.insert(0, FolderFinder(folder))
        sys.path.append(str(folder))  # folders without __init__.py, behind everything installed


def local_source(name: str, folder: Path) -> Path | None:
    """The file or folder that a top-level name means in ``folder``, None if it means something installed."""
    spec = PathFinder.find_spec(name, [str(folder)])
    regular = _regular(spec)
    if regular is not None and regular.origin is not None:
        return Path(regular.origin)
    if spec is None or name in sys.modules or is_taken(name):
        return None
    installed = importlib.util.find_spec(name)
    if installed is not None and _regular(installed) is not None:
        return None
    return folder / name


def is_taken(name: str) -> bool:
    """True for names of Python's standard library and of what bensemble imports."""
    return name in sys.stdlib_module_names or name in OURS


def _regular(spec: ModuleSpec | None) -> ModuleSpec | None:
    """The spec if it is a file or a package with an ``__init__``, not a plain folder."""
    return spec if spec is not None and spec.origin is not None else None
