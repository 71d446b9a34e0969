r"""Calibration after the fact: a temperature, conformal sets and intervals, and a reference to compare live data with.

All of it comes from predictions on held-out data that neither training nor :func:`fit_posterior` saw.

*Temperature* (Guo et al. 2017, "On Calibration of Modern Neural Networks"): the logits of every weight sample are
divided by T, which minimises the negative log likelihood of the predictive mean

.. math:: p(y) = \frac1S \sum_s \mathrm{softmax}(\log p_s / T)_y .

In regression the variances are multiplied by T, with :math:`T = \overline{(y - m)^2 / \sigma^2}`.

*Split conformal prediction* (Vovk et al. 2005; Angelopoulos & Bates 2023, "Conformal Prediction: A Gentle
Introduction", section 1): of n scores, the :math:`\lceil (n+1)(1-\alpha) \rceil`-th smallest is the threshold. A class
belongs to the set where its score :math:`1 - p_k` is at most the threshold; in regression the score is
:math:`|y - m| / \sigma`. For data exchangeable with the calibration data, sets then hold the truth with probability at
least :math:`1 - \alpha` on average over data, whatever the model. Temperature and threshold use the same data: one
number fitted to n examples moves the coverage by far less than the :math:`1/\sqrt n` that the draw of the calibration
data does. For the exact statement fit the temperature on other data and pass it.
"""

from __future__ import annotations

import json
import math
from dataclasses import asdict, dataclass
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from ..checks import check_number
from ..errors import InvalidTypeError, InvalidValueError, shown
from ..likelihoods import DiscreteLikelihood
from ..likelihoods.base import check_finite, check_same_shape, check_tensor
from ..prediction.results import ClassPrediction, Prediction, RegressionPrediction
from .tempering import fitted_temperature, temper

__all__ = ["Calibration", "calibrate"]

#: Version of what :meth:`Calibration.to_json` writes.
VERSION = 1
#: Levels at which the reference holds quantiles: 0, 0.01 .. 1.
LEVELS = 101
#: What the reference of a prediction is made of.
CLASS_MEASURES = ("entropy", "mutual_information")
REGRESSION_MEASURES = ("total_std", "epistemic_std")


@dataclass(frozen=True, repr=False)
class Calibration:
    """What held-out data says about the predictions of a model.

    Attributes:
        temperature: Divides the logits of every weight sample; in regression it multiplies the variances.
        conformal_threshold: Score up to which a class belongs to the set, 1 - probability; in regression how many
            ``total_std`` an interval reaches to each side. 1 (regression: inf) where n is too small for alpha.
        alpha: Share of examples whose truth the sets may miss.
        num_data: Number of terms: examples, tokens, pixels.
        reference: Quantiles of the calibration data at evenly spaced levels from 0 to 1, after tempering: of
            ``entropy`` and ``mutual_information``, in regression of ``total_std`` and ``epistemic_std``.
    """

    temperature: float
    conformal_threshold: float
    alpha: float
    num_data: int
    reference: dict[str, tuple[float, ...]]

    def apply(self, prediction: Prediction) -> Prediction:
        """The prediction at this temperature; one that was tempered by it before comes back as it is.

        Raises:
            InvalidTypeError: Not the kind of prediction that was calibrated.
            InvalidValueError: The samples were not kept, or the prediction has another temperature already.
        """
        if tuple(self.reference) != _measures("apply", prediction):
            raise InvalidTypeError(
                f"apply: prediction must have {' and '.join(self.reference)}, got {type(prediction).__name__}; "
                "calibrate each kind of prediction by itself."
            )
        if prediction.temperature not in (1.0, self.temperature):
            raise InvalidValueError(
                f"apply: prediction must not be tempered yet, got temperature {prediction.temperature:g}; "
                "pass what predict returned."
            )
        return (
            prediction if prediction.temperature == self.temperature else temper("apply", prediction, self.temperature)
        )

    def prediction_set(self, prediction: Prediction) -> Tensor:
        """Which classes belong to the conformal set of each prediction.

        Returns:
            Boolean tensor in the shape of ``probs``; for Bernoulli with a last axis (no, yes) more. A set may be
            empty: no class is as probable as the truth was in the calibration data.

        Raises:
            InvalidTypeError: Not the kind of prediction that was calibrated.
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
            InvalidTypeError: Not a prediction of a regression, or the calibration of one.
        """
        tempered = self.apply(prediction)
        if not isinstance(tempered, RegressionPrediction):
            raise InvalidTypeError(
                f"interval: prediction must be of a regression, got {type(prediction).__name__}; use prediction_set."
            )
        reach = self.conformal_threshold * tempered.total_std
        return tempered.mean - reach, tempered.mean + reach

    def to_json(self) -> str:
        """The calibration as JSON text; an infinite threshold is written as null."""
        fields = asdict(self) | {"version": VERSION}
        if math.isinf(self.conformal_threshold):
            fields["conformal_threshold"] = None
        return json.dumps(fields, allow_nan=False)

    @classmethod
    def from_json(cls, text: str) -> Calibration:
        """What :meth:`to_json` wrote.

        Raises:
            InvalidValueError: The text is something else, or of a newer version.
        """
        try:
            fields = json.loads(text)
            version = fields.pop("version")
            if version == VERSION:
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
            lines += [f"  {name:<20} {shown} (least, median, most)"]
        return "\n".join(lines)


@torch.no_grad()
def calibrate(
    prediction: Prediction, targets: Tensor, alpha: float = 0.1, *, temperature: float | None = None
) -> Calibration:
    """Temperature, conformal threshold and reference distribution from a prediction on held-out data.

    Args:
        prediction: What ``predict`` returned for the held-out inputs, with ``keep_samples=True`` for a loader.
        targets: The truth, as the likelihood takes it: class indices, 0 and 1, or numbers. Terms that the likelihood
            ignores are left out.
        alpha: Share of examples whose truth the conformal sets may miss; 0.1 for sets that hold it in 90 %.
        temperature: A temperature that was fitted on other data, or 1.0 for none; default fits it.

    Raises:
        InvalidTypeError: A prediction without a likelihood, or targets of the wrong type.
        InvalidValueError: Targets that do not fit the prediction, none of them, or samples that were not kept.

    Example:
        >>> p = bensemble.predict(bnn, x_val, likelihood="categorical")
        >>> calibration = bensemble.calibrate(p, y_val)
        >>> sets = calibration.prediction_set(bensemble.predict(bnn, x, likelihood="categorical"))
    """
    check_number("calibrate", "alpha", alpha, above=0, below=1)
    names = _measures("calibrate", prediction)
    check_tensor("calibrate", targets)
    if prediction.temperature != 1.0:
        raise InvalidValueError(
            f"calibrate: prediction must not be tempered yet, got temperature {prediction.temperature:g}; "
            "pass what predict returned."
        )
    targets = targets.to(prediction.mean.device)
    _scores(prediction, targets)  # looks at the targets before they are used
    if temperature is None:
        temperature = fitted_temperature(prediction, targets)
    else:
        check_number("calibrate", "temperature", temperature, above=0)
    tempered = prediction if temperature == 1.0 else temper("calibrate", prediction, temperature)
    scores = _scores(tempered, targets)
    reference = {name: _quantiles(getattr(tempered, name)) for name in names}
    return Calibration(float(temperature), _threshold(tempered, scores, alpha), float(alpha), len(scores), reference)


def _checked(fields: dict[str, Any]) -> dict[str, Any]:
    """The fields of a calibration in a file, every one looked at: anybody may have written it."""
    reference, threshold = fields["reference"], fields["conformal_threshold"]
    if tuple(reference) not in (CLASS_MEASURES, REGRESSION_MEASURES):
        raise ValueError("reference is of other measures")
    fields["conformal_threshold"] = math.inf if threshold is None else threshold
    numbers = [fields["temperature"], fields["alpha"], fields["num_data"], *([] if threshold is None else [threshold])]
    numbers += [value for quantiles in reference.values() for value in quantiles]
    if not all(type(value) in (int, float) and math.isfinite(value) for value in numbers):
        raise ValueError("a value is no number")
    if not (fields["temperature"] > 0 < fields["alpha"] < 1 and type(fields["num_data"]) is int):
        raise ValueError("temperature, alpha or num_data")
    if fields["num_data"] < 1 or fields["conformal_threshold"] < 0:
        raise ValueError("num_data or conformal_threshold")
    for name, quantiles in reference.items():
        if len(quantiles) != LEVELS or any(a > b for a, b in pairwise(quantiles)):
            raise ValueError(f"the quantiles of {name}")
    return {**fields, "reference": {name: tuple(map(float, quantiles)) for name, quantiles in reference.items()}}


def _measures(verb: str, prediction: Any) -> tuple[str, str]:
    """What the reference of a prediction is made of."""
    if isinstance(prediction, ClassPrediction):
        return CLASS_MEASURES
    if isinstance(prediction, RegressionPrediction):
        return REGRESSION_MEASURES
    raise InvalidTypeError(
        f"{verb}: prediction must be of classes or of a regression, got {type(prediction).__name__}; "
        "call predict with a likelihood."
    )


def _scores(prediction: Prediction, targets: Tensor) -> Tensor:
    """How badly each target fits the prediction, one axis."""
    if isinstance(prediction, RegressionPrediction):
        check_same_shape("calibrate", prediction.mean, targets)
        check_finite("calibrate", targets)
        scores = ((targets - prediction.mean).abs() / prediction.total_std).flatten()
    else:
        assert isinstance(prediction.likelihood, DiscreteLikelihood)
        scores = 1 - prediction.likelihood.probability(prediction.mean, targets)
    if not len(scores):
        raise InvalidValueError("calibrate: targets must hold at least one that counts, got none.")
    return scores


def _threshold(prediction: Prediction, scores: Tensor, alpha: float) -> float:
    """The ceil((n + 1)(1 - alpha))-th smallest score; everything where there are fewer scores."""
    most = math.inf if isinstance(prediction, RegressionPrediction) else 1.0
    rank = len(scores) + 1 - math.floor((len(scores) + 1) * alpha + 1e-9)
    if rank > len(scores):
        return most
    # A little more, so that a class whose probability another program rounds otherwise does not fall out of its set.
    return min(float(scores.double().kthvalue(rank).values) + 1e-6, most)


def _quantiles(values: Tensor) -> tuple[float, ...]:
    """Quantiles at evenly spaced levels."""
    ordered = values.flatten().double().sort().values
    place = torch.linspace(0, len(ordered) - 1, LEVELS, dtype=torch.float64)
    low = place.long().clamp_max(len(ordered) - 1)
    high = (low + 1).clamp_max(len(ordered) - 1)
    return tuple(torch.lerp(ordered[low], ordered[high], (place - low).to(ordered.device)).tolist())
