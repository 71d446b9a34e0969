"""Parameters inside plain values: lists, tuples, dictionaries, dataclasses, namespaces and partial functions."""

from __future__ import annotations

import copy
import dataclasses
import functools
import types
from collections.abc import Callable
from typing import Any

from torch import nn

__all__ = ["may_hold", "with_parameters"]

_CONTAINERS = (list, tuple, dict, functools.partial, types.SimpleNamespace)


def may_hold(value: Any) -> bool:
    """Whether a value is a container that may hold Parameters."""
    if isinstance(value, (type, nn.Module)):
        return False
    return isinstance(value, _CONTAINERS) or dataclasses.is_dataclass(value)


def with_parameters(value: Any, read: Callable[[nn.Parameter], Any], above: tuple[int, ...] = ()) -> Any:
    """The value with every Parameter in it replaced by the result of ``read``.

    Args:
        value: Any value.
        read: Returns the replacement of a Parameter, or the Parameter itself.
        above: Identities of the containers around the value.

    Returns:
        The value itself if nothing is replaced, otherwise a copy in which the containers around a replacement are new.
    """
    if isinstance(value, nn.Parameter):
        return read(value)
    if not may_hold(value) or id(value) in above:
        return value
    inside = dict(enumerate(value)) if isinstance(value, (list, tuple)) else _named(value)
    new = {key: with_parameters(item, read, (*above, id(value))) for key, item in inside.items()}
    if all(new[key] is item for key, item in inside.items()):
        return value
    return _rebuilt(value, new)


def _named(value: Any) -> dict[Any, Any]:
    if isinstance(value, dict):
        return value
    if isinstance(value, functools.partial):
        return {**dict(enumerate(value.args)), **value.keywords}
    return vars(value) if hasattr(value, "__dict__") else {}


def _rebuilt(value: Any, new: dict[Any, Any]) -> Any:
    if isinstance(value, tuple):
        return type(value)(*new.values()) if hasattr(value, "_fields") else type(value)(new.values())
    if isinstance(value, functools.partial):
        count = len(value.args)
        return type(value)(value.func, *[new[i] for i in range(count)], **{k: new[k] for k in value.keywords})
    copied = copy.copy(value)
    if isinstance(value, list):
        copied[:] = new.values()
    else:
        (copied if isinstance(value, dict) else copied.__dict__).update(new)
    return copied
