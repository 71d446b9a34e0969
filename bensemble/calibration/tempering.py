r"""A temperature for the weight samples of a prediction: applying and fitting it.

The logits of every weight sample are divided by T, which minimises the negative log likelihood of the predictive mean
(Guo et al. 2017, "On Calibration of Modern Neural Networks"):

.. math:: p(y) = \frac1S \sum_s \mathrm{softmax}(\log p_s / T)_y .

In regression the variances are multiplied by T, with :math:`T = \overline{(y - m)^2 / \sigma^2}`. Both divide the log
density by T, up to a constant.
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Tensor

from ..errors import InvalidValueError
from ..likelihoods import DiscreteLikelihood
from ..prediction.results import ClassPrediction, Prediction, RegressionPrediction

__all__ = ["fitted_temperature", "temper"]

#: The range in which temperatures are searched.
COLDEST, HOTTEST = 0.01, 100.0


def temper(verb: str, prediction: Prediction, temperature: float) -> Prediction:
    """The prediction with the logits of every sample divided by the temperature, or the variances multiplied."""
    if isinstance(prediction, RegressionPrediction):
        scale, samples, noise = math.sqrt(temperature), prediction.samples, prediction.noise_samples
        return replace(
            prediction,
            std=prediction.std * scale,
            samples=None if samples is None else prediction.mean + scale * (samples - prediction.mean),
            noise_variance=prediction.noise_variance * temperature,
            noise_samples=None if noise is None else noise * temperature,
            temperature=temperature,
        )
    likelihood, kept = prediction.likelihood, _samples(verb, prediction)
    assert isinstance(prediction, ClassPrediction)
    assert isinstance(likelihood, DiscreteLikelihood)
    logits = [likelihood.logits(sample) / temperature for sample in kept]
    samples = torch.stack([likelihood.expect(sample) for sample in logits])
    return replace(
        prediction,
        mean=samples.mean(0),
        std=samples.std(0) if len(samples) > 1 else prediction.std,
        samples=samples,
        expected_entropy=torch.stack([likelihood.spread(sample) for sample in logits]).mean(0),
        temperature=temperature,
    )


def _samples(verb: str, prediction: Prediction) -> Tensor:
    """The samples of a prediction; a deterministic one is its own sample."""
    if prediction.samples is not None:
        return prediction.samples
    if prediction.num_samples == 1:
        return prediction.mean.unsqueeze(0)
    raise InvalidValueError(
        f"{verb}: prediction must hold its samples, got none; a temperature changes each of them: "
        "call predict with keep_samples=True, or calibrate with temperature=1.0."
    )


def fitted_temperature(prediction: Prediction, targets: Tensor) -> float:
    """The temperature with the highest likelihood."""
    if isinstance(prediction, RegressionPrediction):
        return float(((targets - prediction.mean) / prediction.total_std).double().square().mean())
    likelihood, kept = prediction.likelihood, _samples("calibrate", prediction)
    assert isinstance(likelihood, DiscreteLikelihood)
    logits = [likelihood.logits(sample) for sample in kept]

    def nll(log_temperature: float) -> float:
        terms = [likelihood.terms(sample / math.exp(log_temperature), targets) for sample in logits]
        return float(-torch.stack(terms).neg().logsumexp(0).double().mean())

    found = math.exp(_lowest(nll, math.log(COLDEST), math.log(HOTTEST)))
    if not 1.01 * COLDEST < found < HOTTEST / 1.01:
        warnings.warn(
            f"calibrate: the temperature is at the end of its range, {found:.3g}: the calibration data does not "
            "determine it (no errors, or random predictions); use more data, or pass temperature=1.0.",
            stacklevel=4,
        )
    return found


def _lowest(value: Callable[[float], float], low: float, high: float, points: int = 25, steps: int = 18) -> float:
    """The minimum of a function of one number: the best point of a grid, refined by golden-section search."""
    width = (high - low) / (points - 1)
    best = min((low + i * width for i in range(points)), key=value)
    low, high = max(low, best - width), min(high, best + width)
    golden = (math.sqrt(5) - 1) / 2
    left, right = high - golden * (high - low), low + golden * (high - low)
    at_left, at_right = value(left), value(right)
    for _ in range(steps):
        if at_left <= at_right:
            high, right, at_right = right, left, at_left
            left = high - golden * (high - low)
            at_left = value(left)
        else:
            low, left, at_left = left, right, at_right
            right = low + golden * (high - low)
            at_right = value(right)
    return (low + high) / 2
