"""Conformal p-values: the share of held-out familiar inputs that are at least as strange."""

from __future__ import annotations

import torch
from torch import Tensor

from ..errors import InvalidTypeError, InvalidValueError

__all__ = ["conformal_pvalue"]


def conformal_pvalue(heldout: Tensor, scores: Tensor) -> Tensor:
    """(1 + number of held-out scores of at least s) / (n + 1) for each score s.

    For inputs that are exchangeable with the held-out ones, P(p <= a) <= a for every level a, on average over held-out
    data (Vovk, Gammerman & Shafer 2005; Bates et al. 2023, "Testing for Outliers with Conformal p-values").

    Args:
        heldout: Held-out scores in ascending order, (n,).
        scores: Scores of any shape.

    Returns:
        Tensor of the shape and dtype of ``scores``, from 1/(n + 1) to 1.

    Raises:
        InvalidTypeError: ``scores`` is no floating tensor.
        InvalidValueError: A score is NaN.
    """
    if not isinstance(scores, Tensor) or not scores.is_floating_point():
        raise InvalidTypeError(f"pvalue: scores must be a floating tensor, got {type(scores).__name__}; call score.")
    if bool(scores.isnan().any()):
        raise InvalidValueError("pvalue: scores must be numbers, got NaN; look at the inputs that have them.")
    below = torch.searchsorted(heldout, scores.detach().to(heldout.device, heldout.dtype).contiguous())
    share = (1 + len(heldout) - below).to(heldout.dtype) / (len(heldout) + 1)
    return share.to(scores.device, scores.dtype)
