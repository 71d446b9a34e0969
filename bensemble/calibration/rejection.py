"""Rejection: the risk of the remaining predictions if an expert takes the most uncertain ones."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..checks import check_number
from ..errors import InvalidTypeError, InvalidValueError
from ..likelihoods import Bernoulli, Categorical
from ..likelihoods.base import check_finite, check_same_shape, check_tensor
from ..models.outputs import describe
from ..prediction.results import ClassPrediction, Prediction, RegressionPrediction
from ..tables import Printed

__all__ = ["RejectionCurve", "rejection_curve"]


@dataclass(frozen=True, eq=False, repr=False)
class RejectionCurve(Printed):
    """Risk over the share of predictions that are kept, the least uncertain first (El-Yaniv & Wiener 2010).

    Attributes:
        kept: Share kept, 1/n .. 1, shape (n,).
        risk: Mean loss of the predictions kept: the share of errors, or the squared error of a regression.
        threshold: Largest uncertainty among the predictions kept.
        by: Name of the uncertainty.

    Example:
        >>> risk, threshold = bensemble.rejection_curve(p, labels).at(0.9)
    """

    kept: Tensor
    risk: Tensor
    threshold: Tensor
    by: str

    @property
    def area(self) -> float:
        """Mean risk over all shares; lower is better (AURC; Geifman & El-Yaniv 2017)."""
        return float(self.risk.mean())

    def at(self, share: float) -> tuple[float, float]:
        """Risk and threshold if this share is kept, rounded to whole predictions."""
        check_number("at", "share", share, above=0, most=1)
        place = max(round(share * len(self.kept)), 1) - 1
        return float(self.risk[place]), float(self.threshold[place])

    def __repr__(self) -> str:
        rows = [f"  {share:>5.0%} kept: risk {self.at(share)[0]:.4g}" for share in (0.5, 0.8, 0.9, 0.95, 1.0)]
        return "\n".join([f"RejectionCurve by {self.by}: {len(self.kept):,} terms, area {self.area:.4g}", *rows])


@torch.no_grad()
def rejection_curve(prediction: Prediction, targets: Tensor, by: str | None = None) -> RejectionCurve:
    """The risk of the predictions that are kept, for every share kept.

    Args:
        prediction: A prediction of classes or of a regression.
        targets: The truth, as the likelihood takes it; ignored terms are left out.
        by: The uncertainty to reject by: for classes ``"entropy"`` (default), ``"mutual_information"`` or
            ``"expected_entropy"``; for a regression ``"total_std"`` (default), ``"epistemic_std"`` or ``"noise_std"``.

    Raises:
        InvalidTypeError: The prediction has no likelihood.
        InvalidValueError: The prediction has no uncertainty ``by``, or the targets do not fit.

    Example:
        >>> curve = bensemble.rejection_curve(p, labels)
        >>> risk, threshold = curve.at(0.9)
    """
    if not isinstance(prediction, (ClassPrediction, RegressionPrediction)):
        raise InvalidTypeError(
            f"rejection_curve: prediction must be of classes or of a regression, got {describe(prediction)}; "
            "call predict with a likelihood."
        )
    check_tensor("rejection_curve", targets)
    loss, counts, measures = _loss(prediction, targets.to(prediction.mean.device))
    by = measures[0] if by is None else by
    if by not in measures:
        raise InvalidValueError(f"rejection_curve: by must be one of {', '.join(measures)}, got {by!r}.")
    uncertainty, loss = getattr(prediction, by)[counts], loss[counts].double()
    if not len(loss):
        raise InvalidValueError("rejection_curve: targets must hold at least one that counts, got none.")
    threshold, order = uncertainty.sort(stable=True)
    number = torch.arange(1, len(loss) + 1, device=loss.device)
    return RejectionCurve(number / len(loss), loss[order].cumsum(0) / number, threshold, by)


def _loss(prediction: Any, targets: Tensor) -> tuple[Tensor, Tensor, tuple[str, ...]]:
    """The loss of each term, which terms count, and the names of the uncertainties."""
    mean = prediction.mean
    if isinstance(prediction, RegressionPrediction):
        check_same_shape("rejection_curve", mean, targets)
        check_finite("rejection_curve", targets)
        return (targets - mean).square(), torch.ones_like(mean, dtype=torch.bool), _REGRESSION
    likelihood = prediction.likelihood
    if isinstance(prediction, ClassPrediction) and isinstance(likelihood, (Categorical, Bernoulli)):
        likelihood.probability(mean, targets)  # checks the targets
        if isinstance(likelihood, Categorical):
            guess = mean.argmax(likelihood.axis(mean))
            return guess != targets, targets != likelihood.ignore_index, _CLASSES
        return (mean > 0.5) != targets.bool(), torch.ones_like(mean, dtype=torch.bool), _CLASSES
    raise InvalidTypeError(
        f"rejection_curve: prediction must be of classes or of a regression, got {type(prediction).__name__}; "
        "call predict with a likelihood."
    )


_CLASSES = ("entropy", "mutual_information", "expected_entropy")
_REGRESSION = ("total_std", "epistemic_std", "noise_std")
