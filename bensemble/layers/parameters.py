"""The dictionary of a layer's Parameters, in which an original name means the posterior mean.

Parts of torch use ``module._parameters`` directly, by original names: functional_call swaps tensors there and puts them
back, weight_norm and pruning remove them. In this dictionary ``"weight"`` finds and replaces ``w_mu``, and removing it
is an error. Iteration gives the names ``w_mu`` and ``w_rho`` only.
"""

from __future__ import annotations

import itertools
from typing import Any

import torch
from torch import Tensor

from ..errors import ConversionError
from ..torch_internals import callers

__all__ = ["PosteriorParameters", "called_from", "order_message"]


class PosteriorParameters(dict[str, Any]):
    """Parameters by name, as in ``nn.Module``.

    Args:
        content: The Parameters.
        means: Original name -> name of the posterior mean.
    """

    def __init__(self, content: dict[str, Any], means: dict[str, str]) -> None:
        super().__init__(content)
        self.means = means

    def __contains__(self, name: object) -> bool:
        if dict.__contains__(self, name):
            return True
        if name not in self.means:
            return False
        if called_from("torch.nn.utils.parametrize"):
            # It would write into the mean before the removal of the weight fails.
            raise ConversionError(order_message("register_parametrization", str(name)))
        return super().__contains__(self.means[str(name)])

    def __missing__(self, name: str) -> Any:
        return super().__getitem__(self.means[name])

    def __setitem__(self, name: str, value: Any) -> None:
        mean = self.means.get(name)
        if mean is None or super().__contains__(name) or not super().__contains__(mean):
            super().__setitem__(name, value)
            return
        old = super().__getitem__(mean)
        if old is None or not isinstance(value, Tensor) or value.shape != old.shape:
            have = "no posterior" if old is None else f"a posterior of shape {tuple(old.shape)}"
            got = f"a tensor of shape {tuple(value.shape)}" if isinstance(value, Tensor) else repr(value)
            raise ConversionError(
                f"assign: '{name}' has {have}, got {got}; call to_deterministic first, change the layer, then "
                "bayesify again."
            )
        super().__setitem__(mean, value)

    def __delitem__(self, name: str) -> None:
        if name in self.means and not super().__contains__(name):
            raise ConversionError(order_message("delete", name))
        super().__delitem__(name)

    def __reduce_ex__(self, protocol: Any) -> Any:
        return PosteriorParameters, (dict(self), self.means)


def called_from(module: str) -> bool:
    """Whether the caller of this function was called from the named module."""
    if torch.compiler.is_compiling():
        return False
    _, caller, *_ = itertools.islice(callers(), 2)
    return caller.f_globals.get("__name__") == module


def order_message(verb: str, name: str) -> str:
    """The error for an operation on a weight with a posterior, with the order of calls that works."""
    return (
        f"{verb}: '{name}' belongs to a posterior; pruning, parametrization and norm fusion take the deterministic "
        "model: apply them before bayesify, or after to_deterministic."
    )
