"""Buffers that no state dict holds (``persistent=False``): a constructor must make them again, and may make others."""

from __future__ import annotations

import json
import math
import warnings
from collections.abc import Iterator
from typing import Any

from torch import Tensor, nn

from ..errors import shown
from ..torch_internals import persistent_buffers_of

__all__ = ["unsaved_sizes", "warn_of_others"]

#: Relative difference of two norms that is no rounding of another machine.
MOST = 1e-3


def unsaved_sizes(model: nn.Module) -> dict[str, str]:
    """What the metadata of a file says of these buffers, their shapes and norms; nothing where there are none."""
    sizes = {name: [list(buffer.shape), float(buffer.double().norm())] for name, buffer in _unsaved(model)}
    return {"bensemble.unsaved": json.dumps(sizes, sort_keys=True)} if sizes else {}


def warn_of_others(path: str, model: nn.Module, text: str | None) -> None:
    """Warn where buffers of a model are not those of the model that was saved."""
    try:
        saved: Any = json.loads(text or "{}")
        before = {name: (list(shape), float(norm)) for name, (shape, norm) in saved.items()}
    except (ValueError, TypeError, AttributeError, RecursionError):
        return  # the file is of another program; the weights have a digest of their own
    for name, buffer in _unsaved(model):
        shape, norm = before.get(name, (None, math.nan))
        if shape == list(buffer.shape) and abs(float(buffer.double().norm()) - norm) > MOST * abs(norm):
            warnings.warn(
                f"load: buffer '{shown(name)}' has other values than in the model that was saved as '{path}': it is "
                "registered with persistent=False, so no file holds it; register it as persistent before saving, or "
                "copy it.",
                stacklevel=4,
            )


def _unsaved(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    kept = {id(tensor) for module in model.modules() for tensor in persistent_buffers_of(module).values()}
    for name, buffer in model.named_buffers():
        if id(buffer) not in kept and buffer.is_floating_point() and type(buffer) is Tensor and not buffer.is_meta:
            yield name, buffer.detach()
