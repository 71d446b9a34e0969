"""Which context a forward belongs to that runs a second time, during ``backward()``.

Activation checkpointing forgets what a forward computed and runs it again when its gradient is due. By then the context
may be closed or another one open, and on an accelerator autograd runs it in a thread of its own, which has no contexts.
So the context is found by the time of the first run: autograd numbers its nodes in the order in which a thread makes
them, and a context covers the numbers that were given while it was open.
"""

from __future__ import annotations

import threading
import weakref
from collections import deque
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import nn
from torch.compiler import is_compiling

from ..errors import SamplingError

if TYPE_CHECKING:
    from .stack import Frame

__all__ = ["frame_of_first_run", "is_second_run", "note_forward", "noted", "seed_of_first_run"]

#: How many closed contexts of a thread, and how many forwards of a layer, are remembered; what is older is refused.
_REMEMBERED = 64


class _Span:
    """The autograd nodes that a thread makes while a frame is open."""

    def __init__(self, frame: Frame) -> None:
        self.frame = weakref.ref(frame)
        self.layers = frozenset(frame.layers)
        self.during_backward = torch._C._current_autograd_node() is not None
        self.first = torch.autograd._get_sequence_nr()  # type: ignore[attr-defined]
        self.end: int | None = None

    def covers(self, number: int) -> bool:
        return self.first <= number and (self.end is None or number < self.end)


class _History:
    """The spans of one thread."""

    def __init__(self) -> None:
        self.open: list[_Span] = []
        self.closed: deque[_Span] = deque(maxlen=_REMEMBERED)

    def covering(self, layer: nn.Module, number: int) -> _Span | None:
        """The innermost span that speaks about the layer and covers the number."""
        if len(self.closed) == _REMEMBERED and number < self.closed[0].first:
            raise SamplingError(_too_late(layer, "contexts"))
        spans = [s for s in (*self.closed, *self.open) if s.covers(number) and id(layer) in s.layers]
        return max(spans, key=lambda span: span.first, default=None)


_local = threading.local()
_histories: weakref.WeakValueDictionary[int, _History] = weakref.WeakValueDictionary()
#: For each layer with one draw per forward: thread, first node, end, and seed of its last forwards.
_forwards: weakref.WeakKeyDictionary[nn.Module, deque[tuple[int, int, int, int]]] = weakref.WeakKeyDictionary()


@contextmanager
def noted(frame: Frame) -> Iterator[None]:
    """Remember that the frame is open in this thread until the context ends."""
    history: _History | None = getattr(_local, "history", None)
    if history is None:
        history = _local.history = _History()
        _histories[id(history)] = history
    span = _Span(frame)
    history.open.append(span)
    try:
        yield
    finally:
        history.open.remove(span)
        span.end = torch.autograd._get_sequence_nr()  # type: ignore[attr-defined]
        if span.end > span.first:
            history.closed.append(span)


def note_forward(layer: nn.Module, first: int, seed: int) -> None:
    """Remember the seed of a forward that has come to its end, for parts of it that are checkpointed.

    Args:
        layer: Whose forward it was.
        first: Number of the next node of autograd when it began.
        seed: What its noise was drawn with.
    """
    end = torch.autograd._get_sequence_nr()  # type: ignore[attr-defined]
    if end > first:
        forwards = _forwards.setdefault(layer, deque(maxlen=_REMEMBERED))
        forwards.append((threading.get_ident(), first, end, seed))


def is_second_run() -> bool:
    """Whether autograd is at work in this thread; never while torch.compile looks."""
    return not is_compiling() and torch._C._current_autograd_node() is not None


def seed_of_first_run(layer: nn.Module) -> int | None:
    """The seed of the forward of which a checkpointed part runs again, None when no forward of the layer is meant.

    Raises:
        SamplingError: it was too long ago.
    """
    node: Any = torch._C._current_autograd_node()
    number, anywhere = node._sequence_nr(), _is_autograds_thread()
    forwards = [f for f in _forwards.get(layer, ()) if anywhere or f[0] == threading.get_ident()]
    for _, first, end, seed in reversed(forwards):
        if first <= number < end:
            return seed
    if len(forwards) == _REMEMBERED and number < forwards[0][1]:
        raise SamplingError(_too_late(layer, "forwards"))
    return None


def frame_of_first_run(layer: nn.Module) -> Frame | None:
    """The frame under which a forward ran first that now runs again during backward, None when there was none.

    Raises:
        SamplingError: its context is closed, or contexts of several threads may be meant.
    """
    mine: _History | None = getattr(_local, "history", None)
    for span in reversed(mine.open if mine else ()):
        if span.during_backward and id(layer) in span.layers:
            return span.frame()
    node: Any = torch._C._current_autograd_node()
    number = node._sequence_nr()
    histories = [h() for h in _histories.valuerefs()] if _is_autograds_thread() else [mine]
    covering = (history.covering(layer, number) for history in histories if history is not None)
    found = [span for span in covering if span is not None]
    if not found:
        return None
    frame = found[0].frame()
    if len(found) > 1 or frame is None:
        state = "one that is closed" if len(found) == 1 else f"{len(found)} in different threads"
        raise SamplingError(
            f"backward: a checkpointed forward of {type(layer).__name__} ran in a sampling context and runs again, got "
            f"{state}; call backward() inside the `with` block of its forward, in one thread."
        )
    return frame


def _too_late(layer: nn.Module, what: str) -> str:
    return (
        f"backward: a checkpointed forward of {type(layer).__name__} runs again, got more than {_REMEMBERED} {what} "
        "since it ran first; call backward() sooner."
    )


def _is_autograds_thread() -> bool:
    """Whether this thread was started by autograd, for the backward pass on an accelerator, and not by Python."""
    return isinstance(threading.current_thread(), threading._DummyThread)
