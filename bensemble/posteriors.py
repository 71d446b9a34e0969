"""Posteriors by the original names of their weights, ties under each of their names."""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Mapping
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from .errors import InvalidTypeError, InvalidValueError
from .layers.weights import PosteriorWeights
from .posterior import Posterior, named_posteriors

__all__ = ["all_names", "by_canonical_name", "first_match"]


def all_names(model: nn.Module) -> dict[str, str]:
    """Every original name of a posterior weight -> the name under which ``named_posteriors`` gives it."""
    canonical = {id(posterior.mu): name for name, posterior in named_posteriors(model)}
    return {
        f"{path}.{posterior.name}" if path else posterior.name: canonical[id(posterior.mu)]
        for path, module in model.named_modules(remove_duplicate=False)
        if isinstance(module, PosteriorWeights)
        for posterior in module._posteriors()
    }


def by_canonical_name(
    verb: str, what: str, model: nn.Module, values: Mapping[str, Any]
) -> dict[str, tuple[Posterior, Any]]:
    """The posteriors that a user's mapping names, each with its value.

    Args:
        verb: The public function that reads the mapping.
        what: The argument.
        model: A model with posteriors.
        values: Anything by original parameter name.

    Raises:
        InvalidTypeError: ``values`` is not a mapping.
        InvalidValueError: A name that no posterior has, or two names of one tied weight.
    """
    if not isinstance(values, Mapping):
        raise InvalidTypeError(f"{verb}: {what} must map parameter names to values, got {type(values).__name__}.")
    names, posteriors = all_names(model), dict(named_posteriors(model))
    found: dict[str, tuple[Posterior, Any]] = {}
    for name, value in values.items():
        if name not in names:
            raise _unknown(verb, what, name, names)
        if names[name] in found:
            raise InvalidValueError(
                f"{verb}: {what} names the tied weight '{names[name]}' twice; keep one of its names."
            )
        found[names[name]] = (posteriors[names[name]], value)
    return found


def first_match(verb: str, what: str, model: nn.Module, patterns: Iterable[str]) -> dict[str, str]:
    """For each posterior that a pattern matches, by canonical name, the first such pattern.

    A pattern is the name of a parameter, that of a module above it, or a glob on the full name.

    Raises:
        InvalidValueError: A pattern that matches nothing.
    """
    names, found = all_names(model), dict[str, str]()
    for pattern in patterns:
        matched = [full for name, full in names.items() if _matches(pattern, name)]
        if not matched:
            raise _unknown(verb, what, pattern, names)
        for full in matched:
            found.setdefault(full, pattern)
    return found


def _matches(pattern: object, name: str) -> bool:
    return name == pattern or name.startswith(f"{pattern}.") or fnmatchcase(name, str(pattern))


def _unknown(verb: str, what: str, name: object, names: Iterable[str]) -> InvalidValueError:
    near = difflib.get_close_matches(str(name), names, 3)
    hint = f"did you mean {', '.join(map(repr, near))}?" if near else f"there are {', '.join(list(names)[:5])}."
    return InvalidValueError(f"{verb}: {what} names {name!r}, which has no posterior; {hint}")
