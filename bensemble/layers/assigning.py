"""Assigning, deleting and registering under the original name of a weight.

Code for deterministic models ties, prunes and reparametrizes weights by their names. Tying a Bayesian weight ties its
posterior. What would lose the posterior raises an error that names the order of calls that works.
"""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..errors import ConversionError, InvalidTypeError
from ..noise.lazy_weights import WeightDraw
from ..torch_internals import parameters_of
from .parameters import called_from, order_message
from .sharing import posterior_of_mean, share, stop_sharing
from .storage import PosteriorStorage

__all__ = ["WeightAssignment"]


class WeightAssignment(PosteriorStorage):
    """Assigning: the part of a module with posteriors that controls changes under the original names."""

    def __setattr__(self, name: str, value: Any) -> None:
        # nn.Module registers Parameters before it looks at properties, so the original names are handled here.
        if name not in self._stems:
            super().__setattr__(name, value)
            return
        if called_from("torch.nn.utils.fusion"):
            # Fusion assigns a scaled Parameter; sigma would have to be scaled too.
            raise ConversionError(order_message("fuse", name))
        if isinstance(value, Tensor) and not isinstance(value, (nn.Parameter, WeightDraw)):
            raise InvalidTypeError(
                f"assign: '{name}' of {type(self).__name__} must be an nn.Parameter, got a plain tensor; "
                f"copy it into `{self._stems[name]}_mu` under torch.no_grad()."
            )
        # A Parameter of the same shape becomes the mean, as tie_weights expects; a draw is replaced by its mean.
        mean = value.source.mu if isinstance(value, WeightDraw) else value
        source = posterior_of_mean(mean) if isinstance(mean, nn.Parameter) else None
        parameters_of(self)[name] = mean
        posterior = self._posterior(name)
        if posterior is None or not isinstance(mean, nn.Parameter):
            return
        if source is None:
            stop_sharing(posterior)
        elif source.rho is not posterior.rho:
            share(posterior, source)

    def __delattr__(self, name: str) -> None:
        if name in self._stems or name in self._posterior_keys():
            raise ConversionError(order_message("delete", name))
        super().__delattr__(name)

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """As ``nn.Module.register_parameter``; a weight with a posterior cannot be registered under another name."""
        taken = [key for key, value in self.__dict__.get("_parameters", {}).items() if value is param is not None]
        own = self._posterior_keys()
        renamed = name not in own and any(key in own for key in taken)
        if name in self._stems or isinstance(param, WeightDraw) or renamed:
            raise ConversionError(order_message("register_parameter", name))
        super().register_parameter(name, param)
