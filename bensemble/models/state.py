"""The state a model runs in: evaluation mode for a while and back, random numbers, compilation, wrappers."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

__all__ = ["evaluating", "is_compiled", "random_state", "unwrapped"]


@contextmanager
def evaluating(*models: nn.Module) -> Iterator[None]:
    """Put the models into evaluation mode, and each of their modules back to its own flag at the end.

    A user's frozen norm stays frozen: restoring by ``model.train()`` would wake it.
    """
    flags = [(module, module.training) for model in models for module in model.modules()]
    try:
        for model in models:
            model.eval()
        yield
    finally:
        for module, flag in flags:
            module.training = flag


def random_state(device: torch.device) -> Tensor:
    """The state of torch's default generators that a model on the device may draw from, to be compared."""
    state = torch.get_rng_state()
    return torch.cat((state, torch.cuda.get_rng_state(device))) if device.type == "cuda" else state


def is_compiled(model: nn.Module) -> bool:
    """Whether torch.compile runs the model or a module in it, so that its operations cannot be watched."""
    return any(m._compiled_call_impl is not None or "_orig_mod" in m._modules for m in model.modules())


def unwrapped(model: nn.Module) -> nn.Module:
    """The module inside torch.compile and data parallel wrappers."""
    inner = getattr(model, "_orig_mod", None)  # torch.compile keeps the module there
    if isinstance(model, (nn.DataParallel, nn.parallel.DistributedDataParallel)):
        inner = model.module
    return unwrapped(inner) if isinstance(inner, nn.Module) else model
