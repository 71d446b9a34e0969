"""Softmax: no closed form, so the mean over fixed points of the logits' distribution."""

from __future__ import annotations

from ..points import output_points
from ..registry import CannotFollowError, Operation, rule
from ..state import Uncertain

__all__: list[str] = []


@rule("softmax", "log_softmax", "_softmax", "_log_softmax")
def softmax(operation: Operation) -> Uncertain:
    """Softmax or its logarithm over the features; what follows takes the probabilities as independent."""
    x, axis = operation.args[0], operation.get(1, "dim")
    if axis % x.ndim != x.axis or x.folded > 1:
        raise CannotFollowError("a softmax over another axis than that of the features")
    found = operation.function(output_points(x), x.axis + 1, *operation.args[2:])
    mean, variance = found.mean(0), found.var(0)
    common = x.average(variance)
    return Uncertain(mean, variance, common, (), common, x.axis)
