"""Checks of single arguments, with the same wording everywhere."""

from __future__ import annotations

import inspect
import math
import numbers
from collections.abc import Mapping
from typing import Any

from torch import nn

from .errors import InvalidTypeError, InvalidValueError, shown

__all__ = ["check_count", "check_module", "check_number", "check_takes"]


def check_number(
    verb: str,
    name: str,
    value: Any,
    *,
    least: float | None = None,
    above: float | None = None,
    below: float | None = None,
    most: float | None = None,
) -> float:
    """The value as a float, or an error unless it is a finite number within the given bounds.

    Args:
        verb: The public function that checks.
        name: The argument.
        value: Its value.
        least: Lowest value allowed.
        above: Exclusive lower bound.
        below: Exclusive upper bound.
        most: Highest value allowed.
    """
    if isinstance(value, bool) or not isinstance(value, numbers.Real):
        raise InvalidTypeError(f"{verb}: {name} must be a number, got {shown(repr(value))}.")
    bounds = [
        (least, "at least", lambda bound: value >= bound),
        (above, "above", lambda bound: value > bound),
        (below, "below", lambda bound: value < bound),
        (most, "at most", lambda bound: value <= bound),
    ]
    asked = [(bound, words, holds) for bound, words, holds in bounds if bound is not None]
    if not math.isfinite(value) or not all(holds(bound) for bound, _, holds in asked):
        wanted = " and ".join(["finite", *(f"{words} {bound:g}" for bound, words, _ in asked)])
        raise InvalidValueError(f"{verb}: {name} must be {wanted}, got {value!r}.")
    return float(value)


def check_count(verb: str, name: str, value: Any, least: int = 1) -> int:
    """The value, or an error unless it is a whole number of at least ``least``."""
    if isinstance(value, bool) or not isinstance(value, int):
        raise InvalidTypeError(f"{verb}: {name} must be a whole number, got {shown(repr(value))}.")
    if value < least:
        raise InvalidValueError(f"{verb}: {name} must be at least {least}, got {value}.")
    return value


def check_takes(verb: str, name: str, function: Any, *arguments: str) -> None:
    """Raise unless the value is a callable that can be called with these arguments by position."""
    wanted = f"{verb}: {name} must be callable as ({', '.join(arguments)})"
    if not callable(function):
        raise InvalidTypeError(f"{wanted}, got {shown(repr(function))}.")
    try:
        inspect.signature(function).bind(*arguments)
    except TypeError as err:
        found = getattr(function, "__name__", type(function).__name__)
        raise InvalidTypeError(
            f"{wanted}, got {found}{inspect.signature(function)}; "
            f"write it as lambda {', '.join(arguments)}: ..., for example."
        ) from err
    except ValueError:  # some builtins have no signature
        return


def check_module(verb: str, model: Any) -> nn.Module:
    """The model, or an error unless it is a module."""
    if not isinstance(model, nn.Module):
        build = (
            "; build the model, and give it these weights with load_state_dict" if isinstance(model, Mapping) else ""
        )
        raise InvalidTypeError(f"{verb}: model must be a torch.nn.Module, got {type(model).__name__}{build}.")
    return model
