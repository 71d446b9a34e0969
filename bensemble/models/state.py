"""The state in which a model runs: evaluation mode, random numbers, wrappers."""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

__all__ = ["calling_modules", "evaluating", "random_state", "unwrapped"]


@contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Put the models into evaluation mode; at the end each module gets its own training flag back.

    ``model.train()`` would also switch modules that a user keeps in evaluation mode, such as a frozen norm.
    """
    flags = [(module, module.training) for model in models for module in model.modules()]
    try:
        for model in models:
            model.eval()
        yield
    finally:
        for module, flag in flags:
            module.training = flag


_lock = threading.Lock()
#: What the flag of the fast path was before the first of the contexts that are open, in whatever thread.
_fast_before: list[bool] = []


@contextmanager
def calling_modules() -> Iterator[None]:
    """Without torch's fast path of attention, which calls no modules and hands nested tensors on.

    Its flag is one for all threads: it comes back when no thread needs it off any more.
    """
    with _lock:
        _fast_before.append(_fast_before[0] if _fast_before else torch.backends.mha.get_fastpath_enabled())
        torch.backends.mha.set_fastpath_enabled(False)
    try:
        yield
    finally:
        with _lock:
            fast = _fast_before.pop()
            if not _fast_before:
                torch.backends.mha.set_fastpath_enabled(fast)


def random_state(device: torch.device) -> Tensor:
    """The states of torch's default generators that a model on the device may use, for comparison."""
    state = torch.get_rng_state()
    return torch.cat((state, torch.cuda.get_rng_state(device))) if device.type == "cuda" else state


def unwrapped(model: nn.Module) -> nn.Module:
    """The module inside torch.compile and data parallel wrappers."""
    inner = getattr(model, "_orig_mod", None)  # torch.compile stores the module there
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        inner = model.module
    return unwrapped(inner) if isinstance(inner, nn.Module) else model
