"""The table of transfer rules."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from torch import nn

if TYPE_CHECKING:
    from ..calls import Call
    from ..flow import Flow

__all__ = ["MODULE_RULES", "RULES", "Rule", "module_rule", "rule"]

Rule = Callable[["Flow", "Call"], Any]
#: (flow, call, module, path) -> what is known about the result.
ModuleRule = Callable[["Flow", "Call", Any, str], Any]

RULES: dict[str, Rule] = {}
MODULE_RULES: dict[type[nn.Module], ModuleRule] = {}


def rule(*names: str) -> Callable[[Rule], Rule]:
    """Register a rule for operations by name."""

    def register(function: Rule) -> Rule:
        for name in names:
            RULES[name] = function
        return function

    return register


def module_rule(*types: type[nn.Module]) -> Callable[[ModuleRule], ModuleRule]:
    """Register a rule for calls of modules of exactly these types."""

    def register(function: ModuleRule) -> ModuleRule:
        for kind in types:
            MODULE_RULES[kind] = function
        return function

    return register
