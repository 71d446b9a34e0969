r"""Calibration: a temperature, conformal sets and intervals, and reference quantiles to compare live data with.

All of it is computed from predictions on held-out data that neither training nor :func:`fit_posterior` has used. The
formulas are in :mod:`bensemble.calibration.tempering` and :mod:`bensemble.calibration.conformal`.

Temperature and threshold use the same data. One number fitted to n examples changes the coverage by far less than the
choice of the calibration data does, :math:`1/\sqrt n`. For the exact guarantee of conformal sets, fit the temperature
on other data and pass it.
"""

from __future__ import annotations

import json
import math
import warnings
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ..checks import check_number
from ..errors import InvalidTypeError, InvalidValueError, shown
from ..likelihoods import Categorical, DiscreteLikelihood
from ..likelihoods.base import check_tensor
from ..prediction.results import ClassPrediction, Prediction, RegressionPrediction
from ..tables import Printed
from .conformal import conformal_scores, conformal_threshold
from .tempering import fitted_temperature, temper

__all__ = ["Calibration", "calibrate"]

#: Version of what :meth:`Calibration.to_json` writes; 1 does not say for whom.
VERSION = 2
#: Number of levels of the reference quantiles: 0, 0.01 .. 1.
LEVELS = 101
#: The uncertainties whose quantiles are the reference.
CLASS_MEASURES = ("entropy", "mutual_information")
REGRESSION_MEASURES = ("total_std", "epistemic_std")


@dataclass(frozen=True, repr=False)
class Calibration(Printed):
    """A temperature, a conformal threshold and reference quantiles, computed on held-out data.

    Attributes:
        temperature: Divides the logits of every weight sample; in regression it multiplies the variances.
        conformal_threshold: Score 1 - probability up to which a class belongs to the set. In regression: half the width
            of an interval in units of ``total_std``. 1 (regression: inf) if there are too few data for alpha.
        alpha: Share of examples whose sets may miss the truth.
        num_data: Number of terms: examples, tokens, pixels.
        reference: Quantiles at evenly spaced levels from 0 to 1, after tempering: of ``entropy`` and
            ``mutual_information``, in regression of ``total_std`` and ``epistemic_std``.
        fingerprint: The posterior whose predictions were calibrated, as in :class:`Prediction`; None if unknown.
        num_samples: Number of samples of these predictions; None if unknown.
        method: How they were made; None if unknown.
        predicted: Quantiles of the most probable class, as its index plus a number between 0 and 1 at random, so that
            a monitor sees classes become more or less frequent; empty without classes.

    Example:
        >>> calibration.prediction_set(p).shape
        torch.Size([297, 10])
    """

    temperature: float
    conformal_threshold: float
    alpha: float
    num_data: int
    reference: dict[str, tuple[float, ...]]
    fingerprint: str | None = None
    num_samples: int | None = None
    method: str | None = None
    predicted: tuple[float, ...] = ()

    def apply(self, prediction: Prediction) -> Prediction:
        """The prediction at this temperature; unchanged if it has this temperature already.

        Raises:
            InvalidTypeError: Another kind of prediction was calibrated.
            InvalidValueError: Another posterior was calibrated, the samples were not kept, or the prediction has
                another temperature.

        Warns:
            UserWarning: The prediction has another number of samples, or was made in another way.
        """
        if tuple(self.reference) != _measures("apply", prediction):
            raise InvalidTypeError(
                f"apply: prediction must have {' and '.join(self.reference)}, got {type(prediction).__name__}; "
                "calibrate each kind of prediction separately."
            )
        self.check_made_for("apply", prediction.fingerprint, prediction.num_samples, prediction.method)
        if prediction.temperature == self.temperature:
            return prediction
        _check_untempered("apply", prediction)
        return temper("apply", prediction, self.temperature)

    def prediction_set(self, prediction: Prediction) -> Tensor:
        """Which classes belong to the conformal set of each prediction.

        Returns:
            Boolean tensor in the shape of ``probs``, for Bernoulli with an additional last axis (no, yes). A set is
            empty if no class is as probable as the truth was in the calibration data.

        Raises:
            InvalidTypeError: Another kind of prediction was calibrated.
        """
        tempered = self.apply(prediction)
        if not isinstance(tempered.likelihood, DiscreteLikelihood):
            raise InvalidTypeError(
                f"prediction_set: prediction must be of classes, got {type(prediction).__name__}; use interval."
            )
        return 1 - tempered.likelihood.class_probs(tempered.mean) <= self.conformal_threshold

    def interval(self, prediction: Prediction) -> tuple[Tensor, Tensor]:
        """Lower and upper end of the conformal interval, ``mean`` -/+ threshold x tempered ``total_std``.

        Raises:
            InvalidTypeError: The prediction or the calibration is not of a regression.
        """
        tempered = self.apply(prediction)
        if not isinstance(tempered, RegressionPrediction):
            raise InvalidTypeError(
                f"interval: prediction must be of a regression, got {type(prediction).__name__}; use prediction_set."
            )
        reach = self.conformal_threshold * tempered.total_std
        return tempered.mean - reach, tempered.mean + reach

    def check_made_for(self, verb: str, fingerprint: str | None, num_samples: int, method: str) -> None:
        """Refuse another posterior, and warn of predictions that are made in another way.

        Args:
            verb: Who asks.
            fingerprint: That of the posterior; None if it is unknown.
            num_samples: Number of samples, of all members together.
            method: As in :class:`Prediction`.
        """
        if None not in (self.fingerprint, fingerprint) and self.fingerprint != fingerprint:
            raise InvalidValueError(
                f"{verb}: the calibration must be of this posterior, got one of another posterior or of weights that "
                "have changed since; call calibrate with predictions of this one."
            )
        found = f"{num_samples} samples ({method})"
        own = f"{self.num_samples} samples ({self.method})"
        if self.method is not None and found != own:
            warnings.warn(
                f"{verb}: the calibration is of predictions with {own}, got {found}; their uncertainties are not the "
                "same, so calibrate predictions made in this way.",
                stacklevel=3,
            )

    def to_json(self) -> str:
        """The calibration as JSON text; an infinite threshold is written as null."""
        fields = asdict(self) | {"version": VERSION}
        if math.isinf(self.conformal_threshold):
            fields["conformal_threshold"] = None
        return json.dumps(fields, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Calibration:
        """The calibration that :meth:`to_json` wrote.

        Raises:
            InvalidValueError: The text is not a calibration, or its version is newer.
        """
        try:
            fields = json.loads(text)
            version = fields.pop("version")
            if version in (1, VERSION):
                return cls(**_checked(fields))
        except (AttributeError, KeyError, OverflowError, RecursionError, TypeError, ValueError) as err:
            raise InvalidValueError(
                f"from_json: text must be what Calibration.to_json wrote, got '{shown(text, 40)}' ({shown(err)})."
            ) from err
        raise InvalidValueError(f"from_json: version must be {VERSION}, got {shown(repr(version))}; update bensemble.")

    def __repr__(self) -> str:
        lines = [f"Calibration on {self.num_data:,} terms"]
        lines += [f"  temperature          {self.temperature:.4g}"]
        lines += [f"  conformal_threshold  {self.conformal_threshold:.4g} (alpha {self.alpha:g})"]
        for name, found in self.reference.items():
            shown = " .. ".join(f"{found[i]:.3g}" for i in (0, len(found) // 2, -1))
            lines += [f"  {name:<20} {shown} (minimum, median, maximum)"]
        return "\n".join(lines)


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
        temperature: A temperature that was fitted on other data, or 1.0 for none. Default: fit it.

    Raises:
        InvalidTypeError: The prediction has no likelihood, or the targets have the wrong type.
        InvalidValueError: The targets are empty or do not fit the prediction, or the samples were not kept.

    Example:
        >>> calibration = bensemble.calibrate(p, labels, alpha=0.05)
        >>> sets = calibration.prediction_set(bensemble.predict(bnn, x, likelihood="categorical"))
    """
    check_number("calibrate", "alpha", alpha, above=0, below=1)
    names = _measures("calibrate", prediction)
    check_tensor("calibrate", targets)
    _check_untempered("calibrate", prediction)
    targets = targets.to(prediction.mean.device)
    conformal_scores(prediction, targets)  # checks the targets
    if temperature is None:
        temperature = fitted_temperature(prediction, targets)
    else:
        check_number("calibrate", "temperature", temperature, above=0)
    tempered = prediction if temperature == 1.0 else temper("calibrate", prediction, temperature)
    scores = conformal_scores(tempered, targets)
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
        predicted=_predicted(tempered),
    )


def _check_untempered(verb: str, prediction: Prediction) -> None:
    if prediction.temperature != 1.0:
        raise InvalidValueError(
            f"{verb}: prediction must not be tempered yet, got temperature {prediction.temperature:g}; "
            "pass what predict returned."
        )


def _checked(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields of a calibration from a file, each one checked: the file may be damaged or made by hand."""
    reference, threshold = fields["reference"], fields["conformal_threshold"]
    if tuple(reference) not in (CLASS_MEASURES, REGRESSION_MEASURES):
        raise ValueError("reference names other uncertainties")
    fields["conformal_threshold"] = math.inf if threshold is None else threshold
    numbers = [fields["temperature"], fields["alpha"], fields["num_data"], *([] if threshold is None else [threshold])]
    numbers += [value for quantiles in (*reference.values(), fields.get("predicted", [])) for value in quantiles]
    if not all(type(value) in (int, float) and math.isfinite(value) for value in numbers):
        raise ValueError("a value is not a finite number")
    if not (fields["temperature"] > 0 < fields["alpha"] < 1 and type(fields["num_data"]) is int):
        raise ValueError("temperature, alpha or num_data")
    if fields["num_data"] < 1 or fields["conformal_threshold"] < 0:
        raise ValueError("num_data or conformal_threshold")
    made = {"fingerprint": str, "num_samples": int, "method": str}
    if not all(type(fields.get(name)) in (kind, type(None)) for name, kind in made.items()):
        raise ValueError(" or ".join(made))
    predicted = fields.get("predicted", [])
    for name, quantiles in [*reference.items(), *([("the predicted classes", predicted)] if predicted else [])]:
        if len(quantiles) != LEVELS or any(a > b for a, b in pairwise(quantiles)):
            raise ValueError(f"the quantiles of {name}")
    fields["predicted"] = tuple(map(float, predicted))
    return {**fields, "reference": {name: tuple(map(float, quantiles)) for name, quantiles in reference.items()}}


def _measures(verb: str, prediction: Any) -> tuple[str, str]:
    """The uncertainties whose quantiles are the reference for this kind of prediction."""
    if isinstance(prediction, ClassPrediction):
        return CLASS_MEASURES
    if isinstance(prediction, RegressionPrediction):
        return REGRESSION_MEASURES
    raise InvalidTypeError(
        f"{verb}: prediction must be of classes or of a regression, got {type(prediction).__name__}; "
        "call predict with a likelihood."
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
