"""The names of a mapping that goes to a model: batches often have others than the arguments of a forward."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from typing import Any

from torch import nn

from ..errors import InvalidTypeError

__all__ = ["check_names"]


def check_names(
    model: Callable[..., Any], inputs: Mapping[str, Any], target: str | None = None, from_loader: bool = False
) -> None:
    """Raise where the forward of a model does not take the names of its inputs, with the line that helps."""
    forward = model.forward if isinstance(model, nn.Module) else model
    try:
        signature = inspect.signature(forward)
    except (TypeError, ValueError):  # some callables have none
        return
    try:
        signature.bind(**inputs)
    except TypeError as err:
        known = [key for key in inputs if key in signature.parameters]
        rest = [key for key in inputs if key not in known]
        takes = [p.name for p in signature.parameters.values() if p.kind not in (p.VAR_POSITIONAL, p.VAR_KEYWORD)]
        one = max(rest or [""], key=lambda key: getattr(inputs.get(key), "ndim", -1))
        chosen = f"{{key: batch[key] for key in {tuple(known)}}}" if known else f"batch[{one!r}]"
        other = target or next((key for key in rest if known or key != one), None)
        line = f"pass unpack=lambda batch: ({chosen}, {'None' if other is None else f'batch[{other!r}]'})"
        raise InvalidTypeError(
            f"inputs: {type(model).__name__} takes the arguments ({', '.join(takes)}), got the keys "
            f"{', '.join(map(repr, inputs))}"
            f"{'' if target is None else f' and the target {target!r}'}; "
            f"{line if from_loader else 'give these names, or the tensor itself'}."
        ) from err
