"""Forwards that run again: activation checkpointing forgets what a forward computed and repeats it during backward.

By then its sampling context may be closed, or another one open, and on an accelerator autograd runs the repetition in
a thread of its own, without contexts. torch notices some of this and stays silent about the rest. So each thread
remembers in which context a layer ran last. A repetition gets that context, and is refused where it is closed.
"""

from __future__ import annotations

import threading
import weakref
from typing import Protocol, TypeVar

import torch
import torch.utils.checkpoint
from torch import nn

from ..errors import SamplingError
from ..torch_internals import callers, is_foreign_thread

__all__ = ["context_of_first_run", "note_own_draw", "refuse_part_of_forward"]

#: The functions of torch.utils.checkpoint that run a forward again.
_REPEATING = ("backward", "recompute_fn")


class Context(Protocol):
    """What this file needs to know of a context."""

    @property
    def is_open(self) -> bool:
        """Whether it can still answer."""
        ...


C = TypeVar("C", bound=Context)


class _History:
    """For one thread: the context of the last forward of each layer, no entry where that had none."""

    def __init__(self) -> None:
        self.contexts: weakref.WeakKeyDictionary[nn.Module, weakref.ref[Context]] = weakref.WeakKeyDictionary()


_local = threading.local()
_histories: list[weakref.ref[_History]] = []  # those of living threads
#: Layers that have drawn weights of their own for one forward.
_own_draws: weakref.WeakSet[nn.Module] = weakref.WeakSet()


def context_of_first_run(layer: nn.Module, active: C | None) -> C | None:
    """The context that a forward of a layer belongs to: the active one, unless the forward runs again.

    Args:
        layer: The layer that asks.
        active: The innermost open context of this thread that speaks about the layer.

    Raises:
        SamplingError: The forward ran in a context that is closed by now, or in several threads.
    """
    if active is None and not (_histories and any(layer in known.contexts for known in _living())):
        return None
    history: _History | None = getattr(_local, "history", None)
    last = history.contexts.get(layer) if history is not None else None
    if active is not None and last is not None and last() is active:
        return active
    if torch.is_grad_enabled() and _runs_again():
        return _found_again(layer, history)
    if active is not None:
        _own_history().contexts[layer] = weakref.ref(active)
    elif last is not None and history is not None:
        del history.contexts[layer]
    return active


def note_own_draw(layer: nn.Module) -> None:
    """Remember that a layer has drawn its weights for one forward of its own."""
    _own_draws.add(layer)


def refuse_part_of_forward(layer: nn.Module) -> None:
    """Raise where a part of a layer's forward runs again, whose weights were drawn when the whole of it ran.

    Raises:
        SamplingError: So it is.
    """
    if layer in _own_draws and torch.is_grad_enabled() and _runs_again():
        raise SamplingError(
            f"backward: a part of the forward of {type(layer).__name__} runs again, which reads a weight that was "
            "drawn for the whole forward; checkpoint the whole layer, or call it inside bensemble.sampling."
        )


def _own_history() -> _History:
    history: _History | None = getattr(_local, "history", None)
    if history is None:
        history = _local.history = _History()
        _histories.append(weakref.ref(history, _histories.remove))
    return history


def _living() -> list[_History]:
    return [history for reference in tuple(_histories) if (history := reference()) is not None]


def _found_again(layer: nn.Module, history: _History | None) -> C | None:
    histories = _living() if is_foreign_thread() else [history] if history is not None else []
    found = [h.contexts[layer] for h in histories if layer in h.contexts]
    if not found:
        return None
    context = found[0]()
    if len(found) > 1 or context is None or not context.is_open:
        state = "one that is closed" if len(found) == 1 else f"{len(found)} in different threads"
        raise SamplingError(
            f"backward: a checkpointed forward of {type(layer).__name__} ran in a sampling context and runs again, got "
            f"{state}; call backward() inside the `with` block of its forward, before the next forward."
        )
    return context  # type: ignore[return-value]


def _runs_again() -> bool:
    """Whether torch.utils.checkpoint is among the callers, repeating a forward."""
    if torch.compiler.is_compiling():
        return False
    file = torch.utils.checkpoint.__file__
    return any(f.f_code.co_name in _REPEATING and f.f_code.co_filename == file for f in callers())
