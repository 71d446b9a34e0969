"""The calls that show what a model does: forwards on several example inputs, and methods other than forward."""

from __future__ import annotations

import difflib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from bensemble.errors import InvalidTypeError, InvalidValueError, one_line
from bensemble.models.batches import Inputs, call

__all__ = ["Entry", "entries"]


@dataclass(frozen=True)
class Entry:
    """One call of a model.

    Attributes:
        inputs: A tensor, a tuple of arguments, or a mapping of keyword arguments.
        method: The method that is called; empty for a forward.
    """

    inputs: Inputs
    method: str = ""

    def run(self, model: nn.Module) -> Any:
        """What the call returns."""
        return call(getattr(model, self.method) if self.method else model, self.inputs)

    def rejected(self, verb: str, error: Exception) -> InvalidValueError:
        """The error for a call that fails."""
        what, taker = "example_inputs", "its forward"
        if self.method:
            what, taker = f"entry_points['{self.method}']", f"'{self.method}'"
        return InvalidValueError(
            f"{verb}: the model rejects {what} ({one_line(error)}); pass what {taker} takes: a tensor, a tuple of "
            "arguments, or a mapping of keyword arguments; a list of these for several calls."
        )


def entries(verb: str, model: nn.Module, example_inputs: Any, entry_points: Any) -> list[Entry]:
    """The calls that a user names, forwards first.

    Args:
        verb: The public function.
        model: The model.
        example_inputs: Inputs of a forward, or a list of inputs for several; None for no forward.
        entry_points: ``{method name: inputs or list of inputs}``, or None.

    Raises:
        InvalidTypeError: ``entry_points`` is not a mapping.
        InvalidValueError: It names no method of the model, or a list is empty.
    """
    if entry_points is None:
        entry_points = {}
    if not isinstance(entry_points, Mapping):
        raise InvalidTypeError(
            f"{verb}: entry_points must map method names to inputs, got {type(entry_points).__name__}; such as "
            "{'encode': x}."
        )
    for name in entry_points:
        if not isinstance(name, str) or not callable(getattr(model, name, None)):
            close = difflib.get_close_matches(str(name), [n for n in dir(model) if not n.startswith("_")], 1)
            hint = f"; did you mean {close[0]!r}?" if close else "."
            raise InvalidValueError(
                f"{verb}: entry_points must name methods of {type(model).__name__}, got {name!r}{hint}"
            )
    named = [("", example_inputs)] if example_inputs is not None else []
    found = []
    for method, given in [*named, *entry_points.items()]:
        several = given if isinstance(given, list) else [given]
        if not several:
            what = f"entry_points['{method}']" if method else "example_inputs"
            raise InvalidValueError(f"{verb}: {what} must hold at least one call, got an empty list.")
        found += [Entry(inputs, method) for inputs in several]
    return found
