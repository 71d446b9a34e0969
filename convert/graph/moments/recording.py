"""Writes down what a computation does to its inputs: a flat graph of tensor operations, with all else computed once.

The rules that carry moments through a network run once, on an example. What depends on no input (squared sigmas,
singular vectors, folded norms) becomes a constant, what two rules compute alike is computed once, and what nobody reads
is left out. The sizes of the example are fixed, but for those that come as a :class:`Size`.
"""

from __future__ import annotations

import operator
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

from torch import Tensor, fx, nn
from torch.overrides import TorchFunctionMode

__all__ = ["Recorder", "Size"]


class Size(int):
    """A number that depends on the sizes of the inputs, with the node that computes it."""

    node: fx.Node


class Recorder(TorchFunctionMode):
    """While it is entered, every operation on something that depends on an input is written down.

    Attributes:
        graph: What was written down so far.

    Example:
        >>> recorder = Recorder()
        >>> x = recorder.input("x", torch.rand(2, 3))
        >>> with recorder:
        ...     y = x @ weight.square()
        >>> module = recorder.module([y])
    """

    def __init__(self) -> None:
        super().__init__()
        self.graph = fx.Graph()
        self._root = nn.Module()
        self._nodes: dict[int, tuple[Tensor, fx.Node]] = {}  # the tensors are kept, lest another takes their id
        self._constants: dict[int, tuple[Tensor, fx.Node]] = {}
        self._pure = False
        self._known: dict[tuple[Any, ...], Any] = {}

    def input(self, name: str, value: Any) -> Any:
        """The next input, by its value in the example."""
        node = self.graph.placeholder(name)
        return self._named(value.view_as(value), node) if isinstance(value, Tensor) else value

    @contextmanager
    def pure(self) -> Iterator[None]:
        """Inside nothing is written in place, so what was computed before is not computed again."""
        self._pure = True
        yield
        self._pure = False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run one operation; write it down if it depends on an input and gives tensors."""
        kwargs = kwargs or {}
        if not self.depends((args, kwargs)):
            return func(*args, **kwargs)
        key = (func, repr(self._mapped(args)), repr(self._mapped(kwargs))) if self._pure else None
        if key in self._known:
            return self._known[key]
        result = func(*args, **kwargs)
        if any(isinstance(leaf, Tensor) for leaf in _leaves(result)):
            result = self.write(func, args, kwargs, result)
        if key is not None:
            self._known[key] = result
        return result

    def write(self, func: Any, args: Any, kwargs: Any, result: Any) -> Any:
        """Write a call down, and return its result as something that depends on the inputs."""
        method = getattr(func, "__name__", "")
        if getattr(Tensor, method, None) is func:
            return self._named(result, self.graph.call_method(method, self._mapped(args), self._mapped(kwargs)))
        return self._named(result, self.graph.call_function(func, self._mapped(args), self._mapped(kwargs)))

    def depends(self, value: Any) -> bool:
        """Whether something in a structure of values depends on an input."""
        return any(isinstance(leaf, Size) or id(leaf) in self._nodes for leaf in _leaves(value))

    def module(self, outputs: Sequence[Tensor]) -> fx.GraphModule:
        """What was written down, as a module that returns these tensors."""
        self.graph.output(tuple(self._mapped(list(outputs))))
        self.graph.eliminate_dead_code()
        return fx.GraphModule(self._root, self.graph)

    def _named(self, value: Any, node: fx.Node) -> Any:
        if isinstance(value, (tuple, list)):
            items = enumerate(value)
            return tuple(self._named(item, self.graph.call_function(operator.getitem, (node, i))) for i, item in items)
        if isinstance(value, int) and not isinstance(value, bool):
            value = Size(value)
            value.node = node
        elif isinstance(value, Tensor):
            self._nodes[id(value)] = (value, node)
        return value

    def _mapped(self, value: Any) -> Any:
        """The value as an argument of a node."""
        if type(value) in (tuple, list):
            return type(value)(self._mapped(item) for item in value)
        if isinstance(value, dict):
            return {key: self._mapped(item) for key, item in value.items()}
        if isinstance(value, slice):
            return slice(self._mapped(value.start), self._mapped(value.stop), self._mapped(value.step))
        if isinstance(value, Size):
            return value.node
        if not isinstance(value, Tensor):
            return value
        table = self._nodes if id(value) in self._nodes else self._constants
        if id(value) not in table:
            name = f"constant_{len(table)}"
            self._root.register_buffer(name, value.detach())
            table[id(value)] = (value, self.graph.get_attr(name))
        return table[id(value)][1]


def _leaves(value: Any) -> Iterator[Any]:
    """What a structure of values holds."""
    if isinstance(value, (tuple, list)):
        for item in value:
            yield from _leaves(item)
    elif isinstance(value, dict):
        yield from _leaves(list(value.values()))
    elif isinstance(value, slice):
        yield from (value.start, value.stop, value.step)
    else:
        yield value
