"""Weights with NaN or infinity, from a diverged training or a damaged file. Buffers may hold infinities."""

from __future__ import annotations

from torch import Tensor

__all__ = ["NOT_FINITE", "is_finite"]

#: The message about such a weight.
NOT_FINITE = "not finite, got NaN or infinity among its values; go back to a checkpoint from before."


def is_finite(tensor: Tensor) -> bool:
    """Whether every value is finite."""
    return not tensor.is_floating_point() or bool(tensor.isfinite().all())
