"""The module that :func:`convert.moments` returns."""

from __future__ import annotations

from typing import Any

from torch import Tensor, fx
from torch.utils._pytree import tree_leaves

from bensemble.prediction.moment_model import MomentModel

from .points import NUM_POINTS, number_of_latents, output_points, standard_points
from .state import Uncertain

__all__ = ["MomentNetwork"]


class MomentNetwork(MomentModel):
    """Carries mean and covariance through the graph of a model, layer by layer.

    Args:
        graph: The model's graph, in which the operations on uncertain activations are replaced by their rules.
        place: Which of the graph's outputs it is about.
        example: That output in the example.
    """

    standard: Tensor

    def __init__(self, graph: fx.GraphModule, place: int, example: Uncertain) -> None:
        super().__init__()
        self.program = graph
        self.place = place
        self.num_points = NUM_POINTS
        points = standard_points(example.own.shape[-1] + number_of_latents(example))
        self.register_buffer("standard", points.to(example.mean))

    def forward(self, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        """Mean and variance of the output over the posterior."""
        output = self._output(args, kwargs)
        return output.mean, output.variance

    def points(self, *args: Any, **kwargs: Any) -> Tensor:
        """The output at fixed points of its distribution, all equally likely, shape (K, B, ...)."""
        return output_points(self._output(args, kwargs), self.standard)

    def _output(self, args: Any, kwargs: Any) -> Uncertain:
        leaves = tree_leaves(self.program(*args, **kwargs), is_leaf=lambda leaf: isinstance(leaf, Uncertain))
        output: Uncertain = leaves[self.place]
        return output
