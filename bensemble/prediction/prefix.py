"""A memo of what a network computes before its first sampled weight: once for all weight samples of a batch.

The network's own Python runs for every sample; only its tensor operations are answered from the memo. The first forward
writes its calls down, up to the first one that takes a sampled weight. A later forward is answered as long as it makes
the same calls in the same order, with equal constants and the very same tensors. Where it departs from that, it is run
again without the memo, and the memo is given up. It is also given up when random numbers were drawn in the prefix, or a
tensor was written to after it.

Of the results only those are kept that somebody still holds at the end of the prefix. The others are answered with
tensors without content.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..gaussian import tracing
from ..models.state import random_state
from ..torch_internals import pytree, version
from .weight_samples import HeldWeights

__all__ = ["Prefix"]

T = TypeVar("T")

#: Calls through which a tensor can be written to without a trace, or that tell tensors apart.
_ESCAPES = (Tensor.data.__get__, Tensor.numpy, Tensor.__array__, Tensor.data_ptr, Tensor.untyped_storage,  # type: ignore[attr-defined]
            Tensor.storage, Tensor.__dlpack__, Tensor.set_, Tensor.__hash__)  # fmt: skip
#: Calls that ask for the form of a tensor alone; they are not written down.
_FORM = (Tensor.shape.__get__, Tensor.dtype.__get__, Tensor.device.__get__, Tensor.ndim.__get__, Tensor.size,  # type: ignore[attr-defined]
         Tensor.dim, Tensor.is_floating_point, Tensor.numel, Tensor.requires_grad.__get__)  # type: ignore[attr-defined]  # fmt: skip
_CONSTANTS = frozenset({int, float, bool, complex, str, type(None), type(Ellipsis), torch.Size, torch.dtype,
                        torch.device, torch.layout, torch.memory_format})  # fmt: skip


class _DepartedError(Exception):
    """A call that is not in the memo, or cannot be."""


class _Absent(Tensor):
    """Has the form of a tensor, and refuses to be used."""

    @classmethod
    def like(cls, tensor: Tensor) -> Tensor:
        """A tensor of the same form."""
        return torch.empty((), dtype=tensor.dtype, device=tensor.device).expand(tensor.shape).as_subclass(cls)

    @classmethod
    def __torch_function__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Refused, unless it asks for the form."""
        if func not in _FORM:
            raise _DepartedError
        return super().__torch_function__(func, types, args, kwargs or {})


class Prefix(TorchFunctionMode):
    """The memo of one batch.

    Args:
        device: Where the model lives, for its random numbers.

    Attributes:
        useful: Whether later forwards can be answered.
    """

    def __init__(self, device: torch.device) -> None:
        super().__init__()
        self.useful, self._device, self._random = True, device, random_state(device)
        self._written: list[Any] = []  # functions, arguments and results, with places instead of tensors
        self._calls: list[Any] = []  # the same with tensors, once the prefix of the first forward is over
        self._sampled: set[int] = set()  # identities of the sampled weights
        self._places: dict[int, int] = {}  # the place of a tensor by its identity
        self._refs: list[weakref.ref[Tensor]] = []  # the tensor at a place
        self._answers: list[Tensor] = []  # what stands for it in an answer
        self._watched: list[tuple[Tensor, int]] = []  # tensors with the version that answers rely on
        self._heavy = False  # whether a Parameter met data in it
        self._ended, self._next = False, 0  # whether the prefix of this forward is over, and which call comes next

    def run(self, held: HeldWeights, forward: Callable[[], T]) -> T:
        """One forward under a weight sample."""
        if not self.useful:
            return forward()
        if self._calls:
            result = self._run_again(forward)
        else:
            self._sampled = {id(weight) for weight in held.weights.values()}
            with self:
                result = forward()
            self._end()
        self.useful = self.useful and self._unchanged()
        return result

    def _run_again(self, forward: Callable[[], T]) -> T:
        self._next, self._ended = 0, False
        try:
            with self:
                result = forward()
            if self._ended:
                return result
        except Exception:
            if self._ended:
                raise
        self.useful = False
        return forward()

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Write a call down, or answer it; after the prefix, run it."""
        kwargs = kwargs or {}
        if self._ended or func in _FORM:
            self.useful = self.useful and func not in _ESCAPES
            return func(*args, **kwargs)
        return self._answer(func, args, kwargs) if self._calls else self._write(func, args, kwargs)

    def _write(self, func: Any, args: Any, kwargs: Any) -> Any:
        try:
            if func in _ESCAPES or torch.is_grad_enabled() or tracing():
                raise _DepartedError
            arguments = _described((args, kwargs), self._place)
        except _DepartedError:
            self._end()
            return func(*args, **kwargs)
        result = func(*args, **kwargs)
        try:
            self._written.append((func, arguments, _described(result, self._result_place)))
            self._heavy = self._heavy or (_holds(result, Tensor) and _holds((args, kwargs), nn.Parameter))
        except _DepartedError:
            self._end()
        return result

    def _end(self) -> None:
        """The prefix of the first forward is over; one without parameters is not worth remembering."""
        if self._ended:
            return
        self._ended = True
        drawn = not torch.equal(self._random, random_state(self._device))
        self.useful = self._heavy and not drawn and self._unchanged()
        for place, ref in enumerate(self._refs):
            tensor = ref()
            if tensor is not None:
                self._answers[place] = tensor
                self._watched.append((tensor, version(tensor)))
        if self.useful:
            self._calls = [(func, self._rebuilt(arguments), result) for func, arguments, result in self._written]
        else:
            self._answers, self._watched = [], []

    def _answer(self, func: Any, args: Any, kwargs: Any) -> Any:
        expected, arguments, result = self._calls[self._next]
        if func != expected or not _same((args, kwargs), arguments):
            raise _DepartedError
        self._next += 1
        self._ended = self._next == len(self._calls)
        return self._rebuilt(result)

    def _place(self, tensor: Tensor, is_result: bool = False) -> int:
        place = self._places.get(id(tensor))
        if place is not None and self._refs[place]() is tensor:  # another one may have had this identity
            return place
        plain = type(tensor) in (Tensor, nn.Parameter) and not tensor.is_inference()
        if not plain or id(tensor) in self._sampled:
            raise _DepartedError
        place = self._places[id(tensor)] = len(self._refs)
        self._refs.append(weakref.ref(tensor))
        self._answers.append(_Absent.like(tensor))
        if not is_result:  # from outside
            self._watched.append((tensor, version(tensor)))
        return place

    def _result_place(self, tensor: Tensor) -> int:
        return self._place(tensor, is_result=True)

    def _unchanged(self) -> bool:
        return all(version(tensor) == then for tensor, then in self._watched)

    def _rebuilt(self, described: Any) -> Any:
        """A result from its description."""
        if isinstance(described, int):
            return self._answers[described]
        kind, value = described
        if kind in _CONSTANTS:
            return value
        if kind is dict:
            return {key: self._rebuilt(item) for key, item in value}
        if kind is slice:
            return slice(*(self._rebuilt(item) for item in value))
        return kind([self._rebuilt(item) for item in value])


def _described(value: Any, place: Callable[[Tensor], int]) -> Any:
    """Arguments or results without holding a tensor: its place stands for it, (type, content) for the rest."""
    if isinstance(value, Tensor):
        return place(value)
    kind = type(value)
    if kind in _CONSTANTS:
        return (kind, value)
    if kind in (tuple, list) or kind.__module__ == "torch.return_types":
        return (kind, [_described(item, place) for item in value])
    if kind is dict:
        return (kind, [(key, _described(item, place)) for key, item in value.items()])
    if kind is slice:
        return (kind, [_described(part, place) for part in (value.start, value.stop, value.step)])
    raise _DepartedError


def _holds(value: Any, kind: type[Tensor]) -> bool:
    return any(isinstance(leaf, kind) for leaf in pytree.tree_leaves(value))


def _same(one: Any, other: Any) -> bool:
    """Whether arguments are equal, with the very same tensors."""
    kind = type(one)
    if one is other or kind is not type(other):
        return one is other
    if kind in (tuple, list):
        return len(one) == len(other) and all(map(_same, one, other))
    if kind is dict:
        return list(one) == list(other) and all(map(_same, one.values(), other.values()))
    if kind is slice:
        return _same((one.start, one.stop, one.step), (other.start, other.stop, other.step))
    return kind in _CONSTANTS and bool(one == other)
