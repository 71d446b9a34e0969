"""One operation of a graph, as the rules see it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from torch import Tensor, fx
from torch.utils._pytree import tree_leaves, tree_map

from ..capture import TensorMeta
from .domain import Value

__all__ = ["Call"]


@dataclass
class Call:
    """One operation: its name without overload and underscore, and its arguments with values for tensors."""

    node: fx.Node
    name: str
    args: tuple[Any, ...]
    kwargs: dict[str, Any]
    meta: Any
    function: Callable[..., Any]

    def get(self, position: int, name: str, default: Any = None) -> Any:
        """An argument by position or keyword."""
        if position < len(self.args):
            return self.args[position]
        return self.kwargs.get(name, default)

    @property
    def shape(self) -> tuple[int, ...]:
        """Shape of the result, for operations that return one tensor."""
        return self.meta.shape

    @property
    def gives_tensor(self) -> bool:
        """Whether the operation returned one tensor."""
        return isinstance(self.meta, TensorMeta)

    @property
    def operands(self) -> list[Value]:
        """All tensors among the arguments."""
        return [leaf for leaf in tree_leaves((self.args, self.kwargs)) if isinstance(leaf, Value)]

    def run(self, *tensors: Tensor) -> Tensor:
        """The operation on other tensors in place of the operands, in the order of ``operands``."""
        given = iter(tensors)
        args, kwargs = tree_map(
            lambda leaf: next(given).clone() if isinstance(leaf, Value) else leaf, (self.args, self.kwargs)
        )
        return self.function(*args, **kwargs)
