"""The module that :func:`convert.moments` returns."""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx
from torch.fx._pytree import tree_flatten_spec
from torch.utils._pytree import TreeSpec

from bensemble.prediction.moment_model import MomentModel

__all__ = ["MomentNetwork"]


class MomentNetwork(MomentModel):
    """Carries mean and covariance through the graph of a model.

    Args:
        program: Takes the model's inputs one after the other; returns mean and variance of the output, and what
            ``spread`` takes.
        spread: The points of the output's distribution.
        inputs: How the arguments of the model are put behind each other.
        num_points: How many points there are.
    """

    def __init__(self, program: fx.GraphModule, spread: fx.GraphModule, inputs: TreeSpec, num_points: int) -> None:
        super().__init__()
        self.program, self.spread = program, spread
        self.num_points = num_points
        self._inputs = inputs

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Mean and variance of the output over the posterior."""
        mean, variance, *_ = self._run(args, kwargs)
        return mean, variance

    def points(self, *args: Any, **kwargs: Any) -> Tensor:
        """The output at fixed points of its distribution, all equally likely, shape (K, B, ...)."""
        found: Tensor = self.spread(*self._run(args, kwargs))[0]
        return found

    def _run(self, args: Any, kwargs: Any) -> tuple[Tensor, ...]:
        found: tuple[Tensor, ...] = self.program(*tree_flatten_spec((list(args), kwargs), self._inputs))
        return found
