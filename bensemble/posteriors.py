"""The walk over all posteriors of a model, and the posteriors that a user's names mean.

Names are the original ones of the weights, such as ``fc.weight``; a tied weight goes by each of its names.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from .errors import InvalidTypeError, InvalidValueError
from .layers.weights import PosteriorModule
from .posterior import Posterior

__all__ = ["all_names", "bayesian_layers", "by_canonical_name", "first_match", "named_posteriors"]


def bayesian_layers(model: nn.Module, every_name: bool = False) -> Iterator[tuple[str, PosteriorModule]]:
    """Every module of the model that holds posteriors, with its path; once, or under every name it has."""
    for path, module in model.named_modules(remove_duplicate=not every_name):
        if isinstance(module, PosteriorModule):
            yield path, module


def named_posteriors(model: nn.Module) -> Iterator[tuple[str, Posterior]]:
    """Every distinct posterior of the model, under the original name of its weight, such as ``fc.weight``.

    A posterior that several layers share comes once, under the first name.
    """
    found: dict[int, list[tuple[str, Posterior]]] = {}
    for path, layer in bayesian_layers(model):
        for posterior in layer._posteriors():
            found.setdefault(id(posterior.mu), []).append((_full_name(path, posterior), posterior))
    for (name, first), *others in found.values():
        yield name, replace(first, ties=tuple(other for _, other in others)) if others else first


def all_names(model: nn.Module) -> dict[str, str]:
    """Every original name of a posterior weight -> the name under which ``named_posteriors`` gives it."""
    canonical = {id(posterior.mu): name for name, posterior in named_posteriors(model)}
    return {
        _full_name(path, posterior): canonical[id(posterior.mu)]
        for path, layer in bayesian_layers(model, every_name=True)
        for posterior in layer._posteriors()
    }


def _full_name(path: str, posterior: Posterior) -> str:
    return f"{path}.{posterior.name}" if path else posterior.name


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
