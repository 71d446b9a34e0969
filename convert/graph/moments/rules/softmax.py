"""Softmax: no closed form, so the mean over fixed points of the logits' distribution."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from ..points import number_of_latents, output_points, standard_points
from ..registry import CannotFollowError, Operation, layer
from ..state import Uncertain

__all__ = ["SoftmaxMoments"]


@layer("softmax", "log_softmax", "_softmax", "_log_softmax")
def softmax(operation: Operation) -> nn.Module:
    """Softmax or its logarithm over the features."""
    x, axis = operation.args[0], operation.get(1, "dim")
    if axis % x.ndim != x.axis or x.folded > 1:
        raise CannotFollowError("a softmax over another axis than that of the features")
    return SoftmaxMoments(operation, x)


class SoftmaxMoments(nn.Module):
    """Moments of each probability. What follows takes them as independent."""

    standard: Tensor

    def __init__(self, operation: Operation, example: Uncertain) -> None:
        super().__init__()
        self.function, self.axis, self.rest = operation.function, example.axis, operation.args[2:]
        points = standard_points(example.own.shape[-1] + number_of_latents(example))
        self.register_buffer("standard", points.to(example.mean))

    def forward(self, x: Uncertain, *_: Any, **__: Any) -> Uncertain:
        """The moments of the probabilities."""
        found = self.function(output_points(x, self.standard), self.axis + 1, *self.rest)
        mean, variance = found.mean(0), found.var(0)
        common = x.average(variance)
        return Uncertain(mean, variance, common, (), common, x.axis)
