"""Weights that are no numbers: training diverged, or a file is damaged. Buffers may hold infinities, as masks do."""

from __future__ import annotations

from torch import Tensor

__all__ = ["NOT_FINITE", "is_finite"]

#: What is said about a weight.
NOT_FINITE = "not finite, got NaN or infinity among its values; go back to a checkpoint from before."


def is_finite(tensor: Tensor) -> bool:
    """Whether every value is a number; integers are."""
    return not tensor.is_floating_point() or bool(tensor.isfinite().all())
