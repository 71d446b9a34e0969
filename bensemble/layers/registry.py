"""The registry of twins: which Bayesian layer type belongs to which deterministic type.

Types must match exactly: a subclass may have its own forward, which the twin would not run.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from typing import TypeVar

from torch import nn

from ..errors import InvalidTypeError, InvalidValueError
from .base import BaseBayesianLayer

__all__ = ["bayesian_type", "register", "register_lazily", "registered_types"]

Layer = TypeVar("Layer", bound=BaseBayesianLayer)

_bayesian: dict[type[nn.Module], type[BaseBayesianLayer]] = {}
_lazy: dict[tuple[str, str], str] = {}


def register(nn_type: type[nn.Module]) -> Callable[[type[Layer]], type[Layer]]:
    """Class decorator: the decorated layer becomes the twin of ``nn_type`` in ``bayesify``.

    Args:
        nn_type: A torch.nn.Module type; the decorated class must subclass it and :class:`BaseBayesianLayer`.

    Raises:
        InvalidTypeError: The class is not a subclass of both.
        InvalidValueError: The type already has another twin.
    """

    def add(cls: type[Layer]) -> type[Layer]:
        if not (isinstance(cls, type) and issubclass(cls, BaseBayesianLayer) and issubclass(cls, nn_type)):
            raise InvalidTypeError(
                f"register: need a subclass of BaseBayesianLayer and {nn_type.__name__}, got {cls!r}."
            )
        known = _bayesian.get(nn_type)
        if known is not None and known.__qualname__ != cls.__qualname__:
            raise InvalidValueError(f"register: {nn_type.__name__} already has the twin {known.__name__}.")
        _bayesian[nn_type] = cls
        cls.deterministic_class = nn_type
        return cls

    return add


def register_lazily(module: str, name: str, twin_module: str) -> None:
    """Register the twin of a type from a package that is optional.

    Args:
        module: Module that defines the deterministic type.
        name: Qualified name of the type.
        twin_module: Module that registers the twin when it is imported.
    """
    _lazy[module, name] = twin_module


def bayesian_type(nn_type: type[nn.Module]) -> type[BaseBayesianLayer] | None:
    """The twin of this type, or None; subclasses do not count."""
    if nn_type not in _bayesian:
        twin_module = _lazy.get((nn_type.__module__, nn_type.__qualname__))
        if twin_module is not None and getattr(sys.modules.get(nn_type.__module__), nn_type.__name__, None) is nn_type:
            import_module(twin_module)
    return _bayesian.get(nn_type)


def registered_types() -> dict[type[nn.Module], type[BaseBayesianLayer]]:
    """Every registered pair, deterministic to Bayesian."""
    return dict(_bayesian)
