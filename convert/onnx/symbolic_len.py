"""``len(tensor)`` that may vary: Python's ``len`` makes an integer of a symbolic size, which fixes the axis."""

from __future__ import annotations

import contextlib
import inspect
from collections.abc import Iterator, Sized

from torch import Tensor, nn

__all__ = ["symbolic_len"]


@contextlib.contextmanager
def symbolic_len(model: nn.Module) -> Iterator[None]:
    """Within it ``len`` of a tensor is ``shape[0]`` in the files that define the forwards of a model's modules."""
    scopes = [getattr(inspect.unwrap(module.forward), "__globals__", {}) for module in model.modules()]
    changed = [scope for scope in {id(scope): scope for scope in scopes}.values() if "len" not in scope]
    for scope in changed:
        scope["len"] = _len
    try:
        yield
    finally:
        for scope in changed:
            scope.pop("len", None)


def _len(sized: Sized) -> int:
    return sized.shape[0] if isinstance(sized, Tensor) and sized.ndim else len(sized)
