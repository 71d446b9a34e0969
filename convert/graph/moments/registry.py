"""The table of rules: how the moments of each operation's result follow from those of its operands.

Operations have the names of ``torch.ops.aten`` without overload. A *formula* is a function of the operation's own
arguments, with an ``Uncertain`` in place of a tensor. A *layer* rule sees the example and returns a module that keeps
what can be computed once, such as squared weights.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from .state import Uncertain, Weight

__all__ = ["FORMULAS", "LAYERS", "CannotFollowError", "Operation", "formula", "layer"]


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

    def plain(self, x: Any, *args: Any, **kwargs: Any) -> Any:
        """The operation on a tensor, never in place."""
        return self.function(x.clone() if self.in_place else x, *args, **kwargs)

    @property
    def in_place(self) -> bool:
        """Whether it writes into its first operand."""
        return self.name.endswith("_")

    def weight(self, position: int, name: str) -> Weight | None:
        """A weight, with or without a posterior."""
        value = self.get(position, name)
        if isinstance(value, Uncertain):
            raise CannotFollowError(f"{name} depends on the input")
        return value


FORMULAS: dict[str, Callable[..., Any]] = {}
LAYERS: dict[str, Callable[[Operation], Callable[..., Any]]] = {}


def formula(*names: str) -> Callable[[Callable[..., Any]], Callable[..., Any]]:
    """Register a function of the operation's arguments."""

    def register(function: Callable[..., Any]) -> Callable[..., Any]:
        FORMULAS.update(dict.fromkeys(names, function))
        return function

    return register


def layer(*names: str) -> Callable[[Any], Any]:
    """Register what makes a module from the example call."""

    def register(build: Any) -> Any:
        LAYERS.update(dict.fromkeys(names, build))
        return build

    return register
