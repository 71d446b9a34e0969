"""``Calibration``: what held-out data says about the predictions of one posterior, applied to new ones, and as JSON."""

from __future__ import annotations

import json
import math
import warnings
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

from torch import Tensor

from ..errors import InvalidTypeError, InvalidValueError, shown
from ..likelihoods import DiscreteLikelihood, Likelihood
from ..likelihoods.base import described
from ..prediction.results import ClassPrediction, Prediction, RegressionPrediction
from ..tables import Printed
from .tempering import temper

__all__ = ["LEVELS", "Calibration", "check_untempered", "meaning_of", "measures_of"]

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
        likelihood: What the outputs meant, in a regression with its settings; None if unknown.
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
    likelihood: str | None = None

    def apply(self, prediction: Prediction) -> Prediction:
        """The prediction at this temperature; unchanged if it has this temperature already.

        Raises:
            InvalidTypeError: Another kind of prediction was calibrated.
            InvalidValueError: Another posterior was calibrated, the samples were not kept, or the prediction has
                another temperature.

        Warns:
            UserWarning: The prediction has another number of samples, or was made in another way.
        """
        if tuple(self.reference) != measures_of("apply", prediction):
            raise InvalidTypeError(
                f"apply: prediction must have {' and '.join(self.reference)}, got {type(prediction).__name__}; "
                "calibrate each kind of prediction separately."
            )
        made = (prediction.num_samples, prediction.method, prediction.likelihood)
        self.check_made_for("apply", prediction.fingerprint, *made)
        if prediction.temperature == self.temperature:
            return prediction
        check_untempered("apply", prediction)
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

    def check_made_for(
        self, verb: str, fingerprint: str | None, num_samples: int, method: str, likelihood: Likelihood | None
    ) -> None:
        """Refuse another posterior or likelihood, and warn of predictions that are made in another way.

        Args:
            verb: Who asks.
            fingerprint: That of the posterior; None if it is unknown.
            num_samples: Number of samples, of all members together.
            method: As in :class:`Prediction`.
            likelihood: What the outputs mean.
        """
        if None not in (self.fingerprint, fingerprint) and self.fingerprint != fingerprint:
            raise InvalidValueError(
                f"{verb}: the calibration must be of this posterior, got one of another posterior or of weights that "
                "have changed since; call calibrate with predictions of this one."
            )
        meaning = meaning_of(likelihood)
        if None not in (self.likelihood, meaning) and self.likelihood != meaning:
            raise InvalidValueError(
                f"{verb}: the calibration must be of this likelihood, got one of {self.likelihood} for {meaning}; call "
                "calibrate with predictions of this likelihood."
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


def meaning_of(likelihood: Likelihood | None) -> str | None:
    """What a calibration depends on: the kind of classes, or the noise of a regression with its settings."""
    if likelihood is None:
        return None
    return type(likelihood).__name__ if isinstance(likelihood, DiscreteLikelihood) else described(likelihood)


def check_untempered(verb: str, prediction: Prediction) -> None:
    """Refuse a prediction that has a temperature already."""
    if prediction.temperature != 1.0:
        raise InvalidValueError(
            f"{verb}: prediction must not be tempered yet, got temperature {prediction.temperature:g}; "
            "pass what predict returned."
        )


def measures_of(verb: str, prediction: Any) -> tuple[str, str]:
    """The uncertainties whose quantiles are the reference for this kind of prediction."""
    if isinstance(prediction, ClassPrediction):
        return CLASS_MEASURES
    if isinstance(prediction, RegressionPrediction):
        return REGRESSION_MEASURES
    raise InvalidTypeError(
        f"{verb}: prediction must be of classes or of a regression, got {type(prediction).__name__}; "
        "call predict with a likelihood."
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
    made = {"fingerprint": str, "num_samples": int, "method": str, "likelihood": str}
    if not all(type(fields.get(name)) in (kind, type(None)) for name, kind in made.items()):
        raise ValueError(" or ".join(made))
    predicted = fields.get("predicted", [])
    for name, quantiles in [*reference.items(), *([("the predicted classes", predicted)] if predicted else [])]:
        if len(quantiles) != LEVELS or any(a > b for a, b in pairwise(quantiles)):
            raise ValueError(f"the quantiles of {name}")
    fields["predicted"] = tuple(map(float, predicted))
    return {**fields, "reference": {name: tuple(map(float, quantiles)) for name, quantiles in reference.items()}}
