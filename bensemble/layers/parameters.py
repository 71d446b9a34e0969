"""The dictionary of a layer's Parameters, in which an original name stands for the posterior mean.

torch reaches past attributes into ``module._parameters``, by the names that it knows: functional_call swaps tensors
there and puts them back, weight_norm and pruning take them out. Here ``"weight"`` finds and swaps ``w_mu``, and
nothing is taken out. Listing shows the names of the posterior only.
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
            # It would write into the mean before it comes to take the weight away.
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
    """Whether the function that asks was called by code of the named module."""
    if torch.compiler.is_compiling():
        return False
    _, caller, *_ = itertools.islice(callers(), 2)
    return caller.f_globals.get("__name__") == module


def order_message(verb: str, name: str) -> str:
    """Why something cannot be done to a posterior weight, and the order in which it can."""
    return (
        f"{verb}: '{name}' belongs to a posterior; pruning, parametrization and norm fusion take the deterministic "
        "model: apply them before bayesify, or after to_deterministic."
    )
