r"""Calibration: a temperature, conformal sets and intervals, and reference quantiles to compare live data with.

All of it is computed from predictions on held-out data that neither training nor :func:`fit_posterior` has used. The
formulas are in :mod:`bensemble.calibration.tempering` and :mod:`bensemble.calibration.conformal`.

Temperature and threshold use the same data. One number fitted to n examples changes the coverage by far less than the
choice of the calibration data does, :math:`1/\sqrt n`. For the exact guarantee of conformal sets, fit the temperature
on other data and pass it.
"""

from __future__ import annotations

import math
import warnings

import torch
from torch import Tensor

from ..checks import check_number
from ..likelihoods import Categorical
from ..likelihoods.base import check_tensor
from ..prediction.results import Prediction, RegressionPrediction
from .calibration import LEVELS, Calibration, check_untempered, meaning_of, measures_of
from .conformal import conformal_scores, conformal_threshold
from .tempering import fitted_temperature, temper

__all__ = ["calibrate"]

#: Error of a regression, as a multiple of that of one constant, from which on its units look wrong.
UNITS = 1.25


@torch.no_grad()
def calibrate(
    prediction: Prediction, targets: Tensor, alpha: float = 0.1, *, temperature: float | None = None
) -> Calibration:
    """Temperature, conformal threshold and reference quantiles from a prediction on held-out data.

    Args:
        prediction: The result of ``predict`` for the held-out inputs, with ``keep_samples=True`` for a loader.
        targets: The truth: class indices, 0 and 1, or numbers, as the likelihood takes them. Terms that the likelihood
            ignores are left out.
        alpha: Share of examples whose conformal sets may miss the truth; 0.1 for sets that contain it in 90 % of cases.
            Above 0.5 a warning.
        temperature: A temperature that was fitted on other data, or 1.0 for none. Default: fit it.

    Raises:
        InvalidTypeError: The prediction has no likelihood, or the targets have the wrong type.
        InvalidValueError: The targets are empty or do not fit the prediction, or the samples were not kept.

    Example:
        >>> calibration = bensemble.calibrate(p, labels, alpha=0.05)
        >>> sets = calibration.prediction_set(bensemble.predict(bnn, x, likelihood="categorical"))
    """
    check_number("calibrate", "alpha", alpha, above=0, below=1)
    if alpha > 0.5:
        warnings.warn(
            f"calibrate: alpha is the share of sets that may miss the truth, got {alpha:g}; {1 - alpha:.3g} gives sets "
            f"that contain it in {alpha:.3g} of the cases.",
            stacklevel=3,
        )
    names = measures_of("calibrate", prediction)
    check_tensor("calibrate", targets)
    check_untempered("calibrate", prediction)
    targets = targets.to(prediction.mean.device)
    conformal_scores(prediction, targets)  # checks the targets
    if temperature is None:
        temperature = fitted_temperature(prediction, targets)
    else:
        check_number("calibrate", "temperature", temperature, above=0)
    tempered = prediction if temperature == 1.0 else temper("calibrate", prediction, temperature)
    scores = conformal_scores(tempered, targets)
    _warn_of_little(tempered, targets, alpha, len(scores))
    reference = {name: _quantiles(getattr(tempered, name)) for name in names}
    return Calibration(
        temperature=float(temperature),
        conformal_threshold=conformal_threshold(tempered, scores, alpha),
        alpha=float(alpha),
        num_data=len(scores),
        reference=reference,
        fingerprint=prediction.fingerprint,
        num_samples=prediction.num_samples,
        method=prediction.method,
        likelihood=meaning_of(prediction.likelihood),
        predicted=_predicted(tempered),
    )


def _warn_of_little(prediction: Prediction, targets: Tensor, alpha: float, count: int) -> None:
    """Warn where sets or intervals hold everything, and where a regression is far worse than one constant."""
    regression = isinstance(prediction, RegressionPrediction)
    if (count + 1) * alpha < 1 - 1e-9:
        warnings.warn(
            f"calibrate: {count} terms give no sets that hold at alpha {alpha:g}, so every "
            f"{'interval is infinite' if regression else 'set contains every class'}; calibrate on "
            f"{math.ceil(1 / alpha - 1e-9) - 1} or more, or raise alpha.",
            stacklevel=4,
        )
    if not regression or len(targets) < 2:
        return
    spread = float((targets - targets.mean(0)).double().square().mean().sqrt())
    error = float((prediction.mean - targets).double().square().mean().sqrt())
    if error > UNITS * spread:
        warnings.warn(
            f"calibrate: the error of the means is {error:.3g}, and that of one constant would be {spread:.3g}; check "
            "that outputs and targets have the same units and order.",
            stacklevel=4,
        )


def _predicted(prediction: Prediction) -> tuple[float, ...]:
    """Quantiles of the most probable class, made continuous by noise."""
    if not isinstance(prediction.likelihood, Categorical):
        return ()
    classes = prediction.mean.argmax(prediction.likelihood.axis(prediction.mean)).flatten().cpu().double()
    return _quantiles(classes + torch.rand(classes.shape, generator=torch.Generator().manual_seed(0)).double())


def _quantiles(values: Tensor) -> tuple[float, ...]:
    """Quantiles at evenly spaced levels."""
    ordered = values.flatten().double().sort().values
    place = torch.linspace(0, len(ordered) - 1, LEVELS, dtype=torch.float64)
    low = place.long().clamp_max(len(ordered) - 1)
    high = (low + 1).clamp_max(len(ordered) - 1)
    return tuple(torch.lerp(ordered[low], ordered[high], (place - low).to(ordered.device)).tolist())
