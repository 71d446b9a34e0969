"""``.data`` in a forward: torch's exporter takes it for a constant, and may end in a crash of the whole process.

What is read is followed as ``detach()``; what is written is refused.
"""

from __future__ import annotations

import traceback
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext, suppress
from typing import Any

from torch import Tensor
from torch.overrides import TorchFunctionMode

from bensemble.errors import ExportError, user_line

__all__ = ["data_detached", "reads_data"]

_READ, _REPLACE = Tensor.data.__get__, Tensor.data.__set__  # type: ignore[attr-defined]


def reads_data(name: str, run: Callable[[], object]) -> bool:
    """Run a model once: whether it reads ``.data``. It is refused where it writes there.

    Args:
        name: What to call the model.
        run: One call of it, which leaves no trace.

    Raises:
        ExportError: It writes.
    """
    with _Writes() as found, suppress(Exception):  # it ran before: what cannot be watched is left to the exporter
        run()
    if found.lines:
        raise ExportError(
            f"export_onnx: {name} writes through .data at {found.lines[0]}, which torch's exporter cannot follow; "
            "compute with a changed copy, or do it once before the export and not in forward."
        )
    return bool(found.read)


def data_detached(reads: bool) -> AbstractContextManager[object]:
    """Within it ``.data`` is ``detach()``, for a model that reads it."""
    return _Detached() if reads else nullcontext()


class _Detached(TorchFunctionMode):
    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        return args[0].detach() if func == _READ else func(*args, **(kwargs or {}))


class _Writes(TorchFunctionMode):
    """Notes the lines that write through ``.data``."""

    def __init__(self) -> None:
        super().__init__()
        self.lines: list[str] = []
        self.read: dict[int, Tensor] = {}

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        if func == _READ:
            self.read[id(result)] = result
        elif func == _REPLACE or (args and id(args[0]) in self.read and _is_in_place(getattr(func, "__name__", ""))):
            self.lines.append(user_line(traceback.extract_stack()) or "a line that is not known")
        return result


def _is_in_place(name: str) -> bool:
    return name == "__setitem__" or (name.endswith("_") and not name.endswith("__"))
