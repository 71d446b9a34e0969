"""The deterministic part of a network before its first sampled weight, computed once for all weight samples.

The network's own Python runs for every sample; only its tensor operations are answered from memory. The first forward
is recorded up to the first operation that takes a sampled weight. A later one is answered as long as it makes the same
calls with the same arguments: the same constants, the results of earlier calls, and tensors from outside that are the
same objects in the same state. So hooks, state in Python and weights that are set on the way are safe, whatever the
modules are.

Of the results only those are kept that somebody still holds at the end of the prefix; the others are answered with
tensors without content. A network that departs from the record before its end, or touches what has no content, is run
again without it, and nothing is remembered any more. Random numbers, writes into tensors from outside, and results that
are changed later have the same effect.
"""

from __future__ import annotations

import weakref
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
import torch.nn.functional as F
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from ..gaussian import tracing
from ..models.state import random_state
from .weight_samples import WeightFrame

__all__ = ["Prefix"]

T = TypeVar("T")

#: Calls that are worth remembering.
_HEAVY = frozenset(
    {F.linear, F.bilinear, F.scaled_dot_product_attention, F.multi_head_attention_forward, torch.lstm, torch.gru,
     torch.matmul, Tensor.matmul, Tensor.__matmul__, torch.mm, torch.bmm, torch.addmm, torch.baddbmm, torch.einsum}
    | {getattr(owner, name) for owner in (torch, F) for name in ("conv1d", "conv2d", "conv3d", "conv_transpose1d",
                                                                 "conv_transpose2d", "conv_transpose3d")}
)  # fmt: skip
#: Calls through which a tensor can be changed without a trace, or that tell tensors apart.
_ESCAPES = (Tensor.data.__get__, Tensor.numpy, Tensor.__array__, Tensor.data_ptr, Tensor.untyped_storage,  # type: ignore[attr-defined]
            Tensor.storage, Tensor.__dlpack__, Tensor.set_, Tensor.__hash__)  # fmt: skip
#: Calls that ask for the form of a tensor alone.
_FORM = (Tensor.shape.__get__, Tensor.dtype.__get__, Tensor.device.__get__, Tensor.ndim.__get__, Tensor.size,  # type: ignore[attr-defined]
         Tensor.dim, Tensor.is_floating_point, Tensor.numel, Tensor.requires_grad.__get__)  # type: ignore[attr-defined]  # fmt: skip
_TENSORS = (Tensor, nn.Parameter)
_PLAIN = frozenset({int, float, bool, complex, str, type(None), type(Ellipsis), torch.Size, torch.dtype, torch.device,
                    torch.layout, torch.memory_format})  # fmt: skip


class _DepartedError(Exception):
    """A forward that differs from the record."""


class _EndError(Exception):
    """A call that cannot be part of the prefix."""


class _Call(NamedTuple):
    """One call: what was called with what, and what it gave.

    Tensors are numbers: 0, 1, .. the results of calls, -1, -2, .. what came from outside.
    """

    func: Any
    arguments: Any
    keywords: Any
    result: Any


class Prefix:
    """The shared prefix of the forwards of one batch.

    Args:
        device: Where the model lives, for its random numbers.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = device
        self._record: _Recording | None = None
        self.useful = True

    def run(self, frame: WeightFrame, forward: Callable[[], T]) -> T:
        """One forward under a weight sample, its prefix recorded or answered from the record."""
        if not self.useful:
            return forward()
        if self._record is None:
            recording = _Recording(frame, self._device)
            with recording:
                result = forward()
            recording.end()
            self._record, self.useful = recording, recording.usable and recording.unchanged()
            return result
        answers = _Answers(self._record)
        try:
            with answers:
                result = forward()
            if not answers.done:
                raise _DepartedError
        except Exception:
            if answers.done:
                raise
            self._record, self.useful = None, False
            return forward()
        self.useful = self._record.unchanged() and not answers.escaped
        return result


class _Recording(TorchFunctionMode):
    """The first forward."""

    def __init__(self, frame: WeightFrame, device: torch.device) -> None:
        super().__init__()
        self._sampled = {id(weight) for weight in frame.weights.values()}
        self._device, self._random = device, random_state(device)
        self.calls: list[_Call] = []
        self.outside: list[Tensor] = []
        self.inside: list[Tensor | None] = []
        self.forms: list[tuple[Any, ...]] = []
        self.absent: dict[int, Tensor] = {}
        self._versions: list[int] = []
        self._kept_versions: list[int | None] = []
        self._refs: list[weakref.ref[Tensor]] = []
        self._numbers: dict[int, int] = {}
        self.usable, self._ended, self._heavy = True, False, False

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Run the call, and remember it while the prefix lasts."""
        kwargs = kwargs or {}
        if self._ended:
            self.usable = self.usable and func not in _ESCAPES
            return func(*args, **kwargs)
        if func in _FORM:
            return func(*args, **kwargs)
        try:
            if func in _ESCAPES or torch.is_grad_enabled() or tracing():
                raise _EndError
            arguments, keywords = _described(args, self._number), _described(kwargs, self._number)
        except _EndError:
            self.end()
            return func(*args, **kwargs)
        result = func(*args, **kwargs)
        try:
            described = _described(result, self._result_number)
        except _EndError:
            self.end()
            return result
        self._heavy = self._heavy or func in _HEAVY
        self.calls.append(_Call(func, arguments, keywords, described))
        return result

    def end(self) -> None:
        """The prefix is over: keep the results that somebody still holds."""
        if self._ended:
            return
        self._ended = True
        self.inside = [ref() for ref in self._refs]
        self._kept_versions = [None if t is None else t._version for t in self.inside]
        untouched = all(t._version == v for t, v in zip(self.outside, self._versions, strict=True))
        drawn = not torch.equal(self._random, random_state(self._device))
        self.usable = self.usable and self._heavy and untouched and not drawn
        if not self.usable:
            self.inside, self.outside = [], []

    def unchanged(self) -> bool:
        """Whether everything that the record holds is still as it was at the end of the prefix."""
        return all(t._version == v for t, v in zip(self.outside, self._versions, strict=True)) and all(
            t is None or t._version == v for t, v in zip(self.inside, self._kept_versions, strict=True)
        )

    def _number(self, tensor: Tensor) -> int:
        """Where an argument comes from."""
        if type(tensor) not in _TENSORS or tensor.is_inference() or id(tensor) in self._sampled:
            raise _EndError
        number = self._known(tensor)
        if number is None:
            self.outside.append(tensor)
            self._versions.append(tensor._version)
            number = self._numbers[id(tensor)] = -len(self.outside)
        return number

    def _result_number(self, tensor: Tensor) -> int:
        """The place of a result; a call may give back one of its arguments."""
        if type(tensor) not in _TENSORS or tensor.is_inference():
            raise _EndError
        number = self._known(tensor)
        if number is None:
            number = self._numbers[id(tensor)] = len(self._refs)
            self._refs.append(weakref.ref(tensor))
            self.forms.append((tensor.shape, tensor.stride(), tensor.dtype, tensor.device))
        return number

    def _known(self, tensor: Tensor) -> int | None:
        number = self._numbers.get(id(tensor))
        if number is not None and number >= 0 and self._refs[number]() is not tensor:
            return None  # another tensor had this identity
        return number


class _Answers(TorchFunctionMode):
    """A later forward, answered from the record."""

    def __init__(self, record: _Recording) -> None:
        super().__init__()
        self._record, self._place, self.escaped = record, 0, False
        self._numbers = {id(t): -1 - i for i, t in enumerate(record.outside)}
        self._numbers |= {id(t): i for i, t in enumerate(record.inside) if t is not None}

    @property
    def done(self) -> bool:
        """Whether the prefix is over."""
        return self._place == len(self._record.calls)

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """The remembered result of a remembered call."""
        kwargs = kwargs or {}
        if self.done:
            self.escaped = self.escaped or func in _ESCAPES
            return func(*args, **kwargs)
        if func in _FORM:
            return func(*args, **kwargs)
        call = self._record.calls[self._place]
        try:
            same = (
                func == call.func
                and _described(args, self._number) == call.arguments
                and _described(kwargs, self._number) == call.keywords
            )
        except _EndError as err:
            raise _DepartedError from err
        if not same:
            raise _DepartedError
        self._place += 1
        return self._answer(call.result)

    def _number(self, tensor: Tensor) -> int:
        number = self._numbers.get(id(tensor))
        if number is None:
            raise _DepartedError
        return number

    def _answer(self, described: Any) -> Any:
        if isinstance(described, int):
            return self._tensor(described)
        kind, value = described
        if kind in _PLAIN:
            return value
        if kind is dict:
            return {key: self._answer(item) for key, item in value}
        return kind([self._answer(item) for item in value])

    def _tensor(self, number: int) -> Tensor:
        if number < 0:
            return self._record.outside[-1 - number]
        kept = self._record.inside[number]
        if kept is not None:
            return kept
        absent = self._record.absent.get(number)
        if absent is None:
            absent = self._record.absent[number] = _Absent.like(*self._record.forms[number])
        self._numbers[id(absent)] = number
        return absent


class _Absent(torch.Tensor):
    """Stands for a result that nobody needs; it has no content, and refuses every operation."""

    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def like(cls, shape: torch.Size, stride: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> Tensor:
        """A tensor of that form."""
        return torch.Tensor._make_wrapper_subclass(cls, shape, strides=stride, dtype=dtype, device=device)

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        """Refused."""
        raise _DepartedError

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"Absent({tuple(self.shape)})"


def _described(value: Any, number: Callable[[Tensor], int]) -> Any:
    """Arguments or results as the record keeps them: a tensor by its number, the rest as (type, content)."""
    if isinstance(value, Tensor):
        return number(value)
    kind = type(value)
    if kind in _PLAIN:
        return (kind, value)
    if kind in (tuple, list) or kind.__module__ == "torch.return_types":
        return (kind, [_described(item, number) for item in value])
    if kind is dict:
        return (kind, [(key, _described(item, number)) for key, item in value.items()])
    if kind is slice:
        return (kind, [_described(part, number) for part in (value.start, value.stop, value.step)])
    raise _EndError
