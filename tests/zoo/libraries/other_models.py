"""Networks of further libraries; each library that is not installed is left out."""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Iterator
from functools import partial

from ..entries import Entry, Example
from .torchvision_import import prepare

prepare()

from . import other_images, other_sequences, other_volumes  # noqa: E402

MODELS = [*other_images.MODELS.items(), *other_volumes.MODELS.items(), *other_sequences.MODELS.items()]


def entries() -> Iterator[Entry]:
    """One entry per network of the libraries that are installed."""
    found = {row[0] for _, row in MODELS if importlib.util.find_spec(row[0]) is not None}
    if not found:
        raise ImportError("none of the further libraries is installed")
    for name, row in MODELS:
        if row[0] in found:
            yield Entry("others", f"{row[0]}_{name}", row[0], partial(_build, row))


def _build(row: other_images.Row) -> Example:
    library, build, inputs = row
    return Example(build(importlib.import_module(library)), inputs())
