"""Copies and pickles of modules that copy or pickle themselves by rules of their own, such as a torch.fx GraphModule.

Their rules know nothing of posteriors, so they are applied to the deterministic module, and the posteriors travel
beside it.
"""

from __future__ import annotations

import copy
from typing import TYPE_CHECKING, Any

from torch import Tensor, nn

if TYPE_CHECKING:
    from .sampled import SampledWeights

__all__ = ["copied_by_base", "pickled_by_base"]

#: What travels beside the module for each posterior: its name, rho, prior, mask, and whether it may be pruned.
Carried = tuple[str, nn.Parameter, Any, Tensor | None, bool]


def copied_by_base(layer: SampledWeights, memo: dict[int, Any]) -> nn.Module:
    """``__deepcopy__`` for a class whose base has one."""
    carried, plain = _taken_apart(layer, memo)
    return _put_together(plain, copy.deepcopy(carried, memo))


def pickled_by_base(layer: SampledWeights) -> tuple[Any, ...]:
    """``__reduce_ex__`` for a class whose base has a ``__reduce__`` of its own."""
    kept: dict[int, Any] = {id(parameter): parameter for parameter in layer.parameters()}
    carried, plain = _taken_apart(layer, kept)
    return _put_together, (plain, carried)


def _taken_apart(layer: SampledWeights, memo: dict[int, Any]) -> tuple[list[Carried], nn.Module]:
    """The posteriors of a layer, and a copy of the deterministic module that it stands for."""
    from .swap import make_deterministic, restorer

    held = list(layer._posteriors())
    carried: list[Carried] = [(p.name, p.rho, p.prior, p.mask, p.prunable) for p in held]  # type: ignore[misc]
    restore = restorer(layer)
    try:
        module = make_deterministic(layer, {p.name: p.mu for p in held})  # type: ignore[misc]
        return carried, copy.deepcopy(module, memo)
    finally:
        restore()


def _put_together(module: nn.Module, carried: list[Carried]) -> nn.Module:
    """Give a deterministic module its posteriors back."""
    from .swap import NewPosterior, make_bayesian

    parameters: dict[str, Any] = module._parameters
    new = {name: NewPosterior(parameters[name], rho, prior, can) for name, rho, prior, _, can in carried}
    layer = make_bayesian(module, new, local=False)
    for name, _, _, mask, _ in carried:
        if mask is not None:
            nn.Module.register_buffer(layer, f"{layer._stems[name]}_mask", mask)
    return layer
