"""The table of transfer rules."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from ..atoms.calls import Call
    from ..atoms.flow import Flow

__all__ = ["RULES", "Rule", "rule"]

#: (flow, call) -> what is known about the result.
Rule = Callable[["Flow", "Call"], Any]

RULES: dict[str, Rule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule for operations by name."""

    def register(function: Rule) -> Rule:
        RULES.update(dict.fromkeys(names, function))
        return function

    return register
