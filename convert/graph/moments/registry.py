"""The table of rules: how the moments of each operation's result follow from those of its operands.

Operations have the names of ``torch.ops.aten`` without overload. A *formula* is a function of the operation's own
arguments, with an ``Uncertain`` in place of a tensor; a *rule* takes the whole :class:`Operation`. Both run on an
example, while :mod:`convert.graph.moments.recording` writes down what they do, so neither may compute with the size of
the batch, or write in place.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch

from .state import Uncertain, Weight

__all__ = ["RULES", "CannotFollowError", "Operation", "formula", "rule"]


class CannotFollowError(Exception):
    """An operation has no moments in closed form; the message says why."""


@dataclass(frozen=True)
class Operation:
    """One call of the example run.

    Attributes:
        name: Name of the operation.
        function: What it calls.
        args: Positional arguments in the example.
        kwargs: Keyword arguments in the example.
    """

    name: str
    function: Callable[..., Any]
    args: tuple[Any, ...]
    kwargs: dict[str, Any]

    def get(self, position: int, name: str, default: Any = None) -> Any:
        """An argument by position or keyword."""
        if position < len(self.args):
            return self.args[position]
        return self.kwargs.get(name, default)

    def plain(self, x: Any) -> Any:
        """The operation on another first operand, never in place."""
        function = getattr(torch.ops.aten, self.name[:-1]) if self.name.endswith("_") else self.function
        return function(x, *self.args[1:], **self.kwargs)

    def weight(self, position: int, name: str) -> Any:
        """A weight, with or without a posterior."""
        value = self.get(position, name)
        if isinstance(value, Uncertain):
            raise CannotFollowError(f"{name} depends on the input")
        return value


RULES: dict[str, Callable[[Operation], Uncertain | Weight]] = {}


def rule(*names: str) -> Callable[[Any], Any]:
    """Register a function of the operation."""

    def register(function: Any) -> Any:
        RULES.update(dict.fromkeys(names, function))
        return function

    return register


def formula(*names: str) -> Callable[[Any], Any]:
    """Register a function of the operation's arguments."""

    def register(function: Any) -> Any:
        rule(*names)(lambda operation: function(*operation.args, **operation.kwargs))
        return function

    return register
