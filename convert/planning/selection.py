"""Which parts of a model a user names with ``include`` and ``exclude``.

A selector is a dotted name (the module and everything below it, or one parameter), a glob on the full name, a module
type, a module object of the model, a callable ``(name, module) -> bool``, or a sequence of these. Exclude wins.
"""

from __future__ import annotations

import difflib
import fnmatch
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

from torch import nn

from bensemble.checks import check_takes
from bensemble.errors import InvalidTypeError, InvalidValueError

__all__ = ["Selection", "parse_selection"]

#: Answers for a module path, the module there and the name of one of its parameters.
Match = Callable[[str, nn.Module, str], bool]


@dataclass(frozen=True)
class Selection:
    """Answers whether a parameter is selected.

    Attributes:
        included: Selectors given with ``include``; None includes everything.
        excluded: Selectors given with ``exclude``.
        outright: What among ``included`` names a module or parameter itself, by name, object or exact type.
        named: What among ``included`` is a name, glob or module object: not a type or callable.
    """

    included: tuple[Match, ...] | None
    excluded: tuple[Match, ...]
    outright: tuple[Match, ...]
    named: tuple[Match, ...] = ()

    def includes(self, path: str, module: nn.Module, name: str) -> bool:
        """Whether ``include`` selects the parameter ``name`` of the module at ``path``."""
        return self.included is None or any(match(path, module, name) for match in self.included)

    def excludes(self, path: str, module: nn.Module, name: str) -> bool:
        """Whether ``exclude`` takes it away."""
        return any(match(path, module, name) for match in self.excluded)

    def names_outright(self, path: str, module: nn.Module, name: str) -> bool:
        """Whether it is named in a way that overrides a default, such as leaving embeddings deterministic."""
        return any(match(path, module, name) for match in self.outright)

    def names(self, path: str, module: nn.Module, name: str) -> bool:
        """Whether a name covers it, its own or that of a module above it."""
        return any(match(path, module, name) for match in self.named)


def parse_selection(verb: str, model: nn.Module, include: Any, exclude: Any) -> Selection:
    """Turn a user's selectors into one :class:`Selection`, checked against the model.

    Raises:
        InvalidTypeError: a selector of a type that selects nothing.
        InvalidValueError: a selector that matches nothing in the model, with the nearest names.
    """
    owners = list(model.named_modules(remove_duplicate=False))
    wanted = None if include is None else [_parse(verb, "include", item, model) for item in _items(include)]
    unwanted = [] if exclude is None else [_parse(verb, "exclude", item, model) for item in _items(exclude)]
    for argument, selectors in (("include", wanted or []), ("exclude", unwanted)):
        for selector in selectors:
            if not any(selector.match(path, module, name) for path, module in owners for name in _names(module)):
                raise InvalidValueError(_nothing_matches(verb, argument, selector.item, owners))
    return Selection(
        None if wanted is None else tuple(selector.match for selector in wanted),
        tuple(selector.match for selector in unwanted),
        tuple(selector.outright for selector in wanted or [] if selector.outright),
        tuple(selector.match for selector in wanted or [] if isinstance(selector.item, (str, nn.Module))),
    )


@dataclass(frozen=True)
class _Selector:
    """What the user wrote, what it selects, and what it names outright."""

    item: Any
    match: Match
    outright: Match | None = None


def _items(selector: Any) -> Iterable[Any]:
    if isinstance(selector, (list, tuple, set, frozenset)):
        return selector
    return [selector]


def _names(module: nn.Module) -> list[str]:
    """Parameter names of a module itself; one empty name stands for a module without any."""
    names = [name for name, _ in module.named_parameters(recurse=False, remove_duplicate=False)]
    return names or [""]


def _parse(verb: str, argument: str, item: Any, model: nn.Module) -> _Selector:
    if isinstance(item, str):
        if any(char in item for char in "*?["):
            return _Selector(item, lambda path, module, name: _globs(item, path, name))
        return _Selector(
            item,
            lambda path, module, name: _below(item, path) or _join(path, name) == item,
            lambda path, module, name: item in (path, _join(path, name)),
        )
    if isinstance(item, type) and issubclass(item, nn.Module):
        inside = {id(part) for module in model.modules() if isinstance(module, item) for part in module.modules()}
        return _Selector(
            item, lambda path, module, name: id(module) in inside, lambda path, module, name: type(module) is item
        )
    if isinstance(item, nn.Module):
        inside = {id(part) for part in item.modules()}
        return _Selector(
            item, lambda path, module, name: id(module) in inside, lambda path, module, name: module is item
        )
    if callable(item) and not isinstance(item, type):
        check_takes(verb, argument, item, "name", "module")
        return _Selector(item, lambda path, module, name: bool(item(path, module)))
    raise InvalidTypeError(
        f"{verb}: {argument} takes names, globs, module types, modules of the model and callables (name, module) -> "
        f"bool, got {item!r}."
    )


def _join(path: str, name: str) -> str:
    return f"{path}.{name}" if path and name else path or name


def _below(selector: str, path: str) -> bool:
    return path == selector or path.startswith(selector + ".")


def _globs(pattern: str, path: str, name: str) -> bool:
    """Whether the glob matches the parameter, its module, or a module above it."""
    parts = path.split(".") if path else []
    above = (".".join(parts[:end]) for end in range(len(parts), 0, -1))
    return fnmatch.fnmatchcase(_join(path, name), pattern) or any(fnmatch.fnmatchcase(p, pattern) for p in above)


def _nothing_matches(verb: str, argument: str, item: Any, owners: list[tuple[str, nn.Module]]) -> str:
    if isinstance(item, str):
        names = sorted({path for path, _ in owners if path})
        near = difflib.get_close_matches(item, names, n=3, cutoff=0.4) or names[:3]
        return f"{verb}: {argument} {item!r} matches nothing in the model; nearest names: {', '.join(near) or 'none'}."
    if isinstance(item, type):
        types = sorted({type(module).__name__ for _, module in owners})
        return f"{verb}: {argument} {item.__name__} matches no module; the model holds {', '.join(types[:12])}."
    if isinstance(item, nn.Module):
        return (
            f"{verb}: {argument} got a {type(item).__name__} that is no part of the model; "
            "pass a module object of the model itself, not of a copy."
        )
    return f"{verb}: {argument} {item!r} selects nothing in the model; it must return True for some (name, module)."
