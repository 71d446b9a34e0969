"""The posteriors of a whole model, and how a user names them.

Names are the original names of the weights, such as ``fc.weight``. A tied weight may be called by each of its names.
"""

from __future__ import annotations

import difflib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from fnmatch import fnmatchcase
from typing import Any

from torch import nn

from .checks import check_module
from .errors import InvalidTypeError, InvalidValueError
from .layers.weights import PosteriorModule
from .posterior import Posterior

__all__ = [
    "all_names",
    "bayesian_layers",
    "by_canonical_name",
    "check_bayesian",
    "first_match",
    "is_bayesian",
    "named_posteriors",
    "tied_posteriors",
]


def bayesian_layers(model: nn.Module, every_name: bool = False) -> Iterator[tuple[str, PosteriorModule]]:
    """Every module that holds posteriors, with its path; once, or under each of its names."""
    for path, module in model.named_modules(remove_duplicate=not every_name):
        if isinstance(module, PosteriorModule):
            yield path, module


def named_posteriors(model: nn.Module) -> Iterator[tuple[str, Posterior]]:
    """Every distinct posterior of the model, with the original name of its weight, such as ``fc.weight``.

    A posterior that several layers share occurs once, under its first name.

    Example:
        >>> [name for name, posterior in bensemble.named_posteriors(bnn)]
        ['5.weight', '5.bias']
    """
    for (name, first), *others in tied_posteriors(model):
        yield name, replace(first, ties=tuple(other for _, other in others)) if others else first


def tied_posteriors(model: nn.Module) -> list[list[tuple[str, Posterior]]]:
    """Every distinct posterior of the model as its holders have it: the original name and the handle at each place."""
    found: dict[int, list[tuple[str, Posterior]]] = {}
    for path, layer in bayesian_layers(model):
        for posterior in layer._posteriors():
            found.setdefault(id(posterior.mu), []).append((_full_name(path, posterior), posterior))
    return list(found.values())


def is_bayesian(model: nn.Module) -> bool:
    """Whether at least one weight of the model has a posterior."""
    return any(True for _, layer in bayesian_layers(model) for _ in layer._posteriors())


def check_bayesian(verb: str, model: Any) -> None:
    """Raise unless the model is a module with posteriors."""
    if not is_bayesian(check_module(verb, model)):
        raise InvalidValueError(
            f"{verb}: {type(model).__name__} has no posteriors, got a deterministic model; call convert.bayesify."
        )


def all_names(model: nn.Module) -> dict[str, str]:
    """For every original name of a posterior weight the name that :func:`named_posteriors` gives it."""
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
        InvalidValueError: A name belongs to no posterior, or two names belong to one tied weight.
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
    """The first pattern that matches each posterior, by canonical name; posteriors without a match are left out.

    A pattern is the name of a parameter or of a module above it, or a glob on either.

    Raises:
        InvalidValueError: A pattern matches nothing.
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
    globs = (str(pattern), f"{pattern}.*")
    return name == pattern or name.startswith(f"{pattern}.") or any(fnmatchcase(name, glob) for glob in globs)


def _unknown(verb: str, what: str, name: object, names: Iterable[str]) -> InvalidValueError:
    near = difflib.get_close_matches(str(name), names, 3)
    hint = f"did you mean {', '.join(map(repr, near))}?" if near else f"there are {', '.join(list(names)[:5])}."
    return InvalidValueError(f"{verb}: {what} names {name!r}, which has no posterior; {hint}")
