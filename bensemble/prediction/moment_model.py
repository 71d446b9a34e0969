"""Models whose forward gives mean and variance of their outputs over the posterior, in one pass without random numbers.

``convert.moments`` makes them. This module only says what prediction may ask of one, so that bensemble needs no graphs.
"""

from __future__ import annotations

from abc import abstractmethod
from typing import Any

from torch import Tensor, nn

__all__ = ["MomentModel"]


class MomentModel(nn.Module):
    """Base of such models. They take the inputs of the model they stand for.

    Attributes:
        num_points: How many points :meth:`points` gives.
    """

    num_points: int

    @abstractmethod
    def forward(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Mean and variance of every output over the posterior, both of shape (B, ...)."""

    @abstractmethod
    def points(self, *args: Any, **kwargs: Any) -> Tensor:
        """Outputs at K fixed points of their distribution, all equally likely, shape (K, B, ...).

        Their mean and their variance (by K - 1) are those of :meth:`forward`, so whatever takes weight samples takes
        them: averages of a softmax and of entropies among others.
        """
