"""What torch works out anew for every exported file, once in a process: most of the time of a small export.

Where torch calls these things something else, exports take longer.
"""

from __future__ import annotations

import copy
import functools
import typing
from collections.abc import Callable
from typing import Any

import torch

__all__ = ["remember_operators"]


def remember_operators(put: Callable[[Any, str, Any], None] = setattr) -> Callable[[], None]:
    """Let torch.onnx parse the source of its 500 operators once, and torch.export list those that stay whole once.

    Args:
        put: Sets an attribute, such as ``monkeypatch.setattr``.

    Returns:
        A function that makes the next export parse the operators again.
    """
    _list_once(put)
    try:
        from torch.onnx._internal.exporter._registration import ONNXRegistry

        read = functools.cache(ONNXRegistry.from_torchlib)
    except (ImportError, AttributeError):
        return lambda: None

    def copied(cls, *args, **kwargs):
        """Every export gets a copy."""
        registry = copy.copy(read(*args, **kwargs))
        registry.functions = {target: list(functions) for target, functions in registry.functions.items()}
        return registry

    put(ONNXRegistry, "from_torchlib", classmethod(copied))
    return read.cache_clear


def _list_once(put: Callable[[Any, str, Any], None]) -> None:
    """The list is made again where an operator was registered since.

    Annotations of a closure of torch, which it evaluates 5,000 times for a file, are taken from the cache of typing.
    """
    try:
        import torch.export.exported_program as exported

        count, collect = torch._C._dispatch_get_registrations_for_dispatch_key, exported._collect_all_valid_cia_ops
        assert torch._ops.Callable
    except (ImportError, AttributeError):
        return
    found = functools.cache(lambda registered: collect())
    put(exported, "_collect_all_valid_cia_ops", lambda: found(len(count("CompositeImplicitAutograd"))))
    put(torch._ops, "Callable", typing.Callable)
