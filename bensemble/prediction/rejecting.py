"""Which predictions to hand to somebody who knows better."""

from __future__ import annotations

import warnings
from typing import Any

import torch
from torch import Tensor

from ..checks import check_number
from ..errors import InvalidValueError

__all__ = ["rejected"]


def rejected(
    prediction: Any,
    measures: tuple[str, ...],
    by: str,
    share: float | None,
    threshold: float | None,
    level: float | None,
) -> Tensor:
    """The predictions that ``reject`` of a prediction rejects, as a boolean tensor.

    Args:
        prediction: A :class:`bensemble.Prediction`.
        measures: The uncertainties that it has, besides novelty.
        by: One of these, or ``"novelty"``.
        share: Reject this share, the most uncertain ones.
        threshold: Reject what is above it.
        level: Reject what has a p-value of at most this.

    Raises:
        InvalidValueError: Not exactly one of ``share``, ``threshold`` and ``level``, a value out of range, an unknown
            uncertainty, a level of something without p-values, or no novelty.
    """
    if by not in (*measures, "novelty"):
        hint = "; give its p-values as by='novelty' and level=" if by == "novelty_pvalue" else ""
        raise InvalidValueError(f"reject: by must be one of {', '.join((*measures, 'novelty'))}, got {by!r}{hint}.")
    if sum(value is not None for value in (share, threshold, level)) != 1:
        raise InvalidValueError("reject: exactly one of share and threshold must be given, or level for novelty.")
    uncertainty: Tensor | None = getattr(prediction, by)
    if uncertainty is None:
        raise InvalidValueError("reject: the prediction has no novelty; call predict with novelty=fit_novelty(...).")
    if level is not None:
        return _at_level(prediction, by, check_number("reject", "level", level, above=0, most=1))
    if threshold is not None:
        return uncertainty > check_number("reject", "threshold", threshold)
    share = check_number("reject", "share", share, least=0, most=1)
    flat = uncertainty.flatten()
    chosen = torch.zeros_like(flat, dtype=torch.bool)
    chosen[flat.argsort(descending=True, stable=True)[: round(share * flat.numel())]] = True
    return chosen.view_as(uncertainty)


def _at_level(prediction: Any, by: str, level: float) -> Tensor:
    if by != "novelty":
        raise InvalidValueError(
            f"reject: level needs a p-value, which {by} has not, got level={level:g}; use by='novelty', or threshold=."
        )
    if prediction.smallest_pvalue > level:
        warnings.warn(
            f"reject: no p-value is below {prediction.smallest_pvalue:.2g} = 1 / (n + 1) for the n held-out terms of "
            f"the novelty, so nothing is rejected at level {level:g}; hold out more, or raise the level.",
            UserWarning,
            stacklevel=4,
        )
    return prediction.novelty_pvalue <= level
