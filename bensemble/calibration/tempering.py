r"""A temperature for the weight samples of a prediction: applying and fitting it.

The logits of every weight sample are divided by T, which minimises the negative log likelihood of the predictive mean
(Guo et al. 2017, "On Calibration of Modern Neural Networks"):

.. math:: p(y) = \frac1S \sum_s \mathrm{softmax}(z_s / T)_y .

Gaussian logits of a closed form are divided as well: their means by T, their variances by :math:`T^2`.

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
from ..prediction.closed import expected_entropy, mixture, probit
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
    assert isinstance(prediction, ClassPrediction)
    likelihood, logits = prediction.likelihood, _logits(verb, prediction) / temperature
    assert isinstance(likelihood, DiscreteLikelihood)
    samples = torch.stack([likelihood.expect(sample) for sample in logits])
    spreads = torch.stack([likelihood.spread(sample) for sample in logits])
    tempered = replace(
        prediction,
        mean=samples.mean(0),
        std=samples.std(0) if len(samples) > 1 else prediction.std,
        samples=samples,
        logits=logits,
        expected_entropy=spreads.mean(0),
        temperature=temperature,
    )
    return tempered if prediction.logit_mean is None else _in_closed_form(tempered, spreads)


def _in_closed_form(prediction: ClassPrediction, spreads: Tensor) -> ClassPrediction:
    """The prediction of Gaussian logits, whose probabilities are not the mean over the draws, but by probit."""
    likelihood, samples = prediction.likelihood, prediction.samples
    assert isinstance(likelihood, DiscreteLikelihood)
    assert samples is not None
    logits = _probit_logits(prediction, prediction.temperature)
    parts = []
    for own, draws, spread in zip(logits, samples.chunk(len(logits)), spreads.chunk(len(logits)), strict=True):
        probs = likelihood.expect(own)
        expected = expected_entropy(likelihood, probs, draws.mean(0), spread.mean(0))
        parts.append({"mean": probs, "std": draws.std(0, correction=0), "spread": expected})
    found = mixture(parts)
    return replace(prediction, mean=found["mean"], std=found["std"], expected_entropy=found["spread"])


def _probit_logits(prediction: Prediction, temperature: float) -> list[Tensor]:
    """The logits of the probit approximation at a temperature, for each member."""
    assert prediction.logit_mean is not None
    assert prediction.logit_variance is not None
    pairs = zip(prediction.logit_mean / temperature, prediction.logit_variance / temperature**2, strict=True)
    return [probit(mean, variance) for mean, variance in pairs]


def _logits(verb: str, prediction: Prediction) -> Tensor:
    """The logits of the samples of a prediction; from its probabilities where it was made by hand."""
    if prediction.logits is not None:
        return prediction.logits
    likelihood, samples = prediction.likelihood, prediction.samples
    assert isinstance(likelihood, DiscreteLikelihood)
    if samples is None and prediction.num_samples == 1:
        samples = prediction.mean.unsqueeze(0)
    if samples is None:
        raise InvalidValueError(
            f"{verb}: prediction must hold its samples, got none; a temperature changes each of them: "
            "call predict with keep_samples=True, or calibrate with temperature=1.0."
        )
    return torch.stack([likelihood.logits(sample) for sample in samples])


def fitted_temperature(prediction: Prediction, targets: Tensor) -> float:
    """The temperature with the highest likelihood."""
    if isinstance(prediction, RegressionPrediction):
        return float(((targets - prediction.mean) / prediction.total_std).double().square().mean())
    likelihood, raw = prediction.likelihood, _logits("calibrate", prediction)
    assert isinstance(likelihood, DiscreteLikelihood)
    closed = prediction.logit_mean is not None

    def nll(log_temperature: float) -> float:
        temperature = math.exp(log_temperature)
        logits = _probit_logits(prediction, temperature) if closed else raw / temperature
        terms = [likelihood.terms(sample, targets) for sample in logits]
        return float(-torch.stack(terms).neg().logsumexp(0).double().mean())

    found = math.exp(_lowest(nll, math.log(_coldest(prediction)), math.log(HOTTEST)))
    if not 1.01 * COLDEST < found < HOTTEST / 1.01:
        why = "too few errors; use more data, or pass temperature=1.0"
        if found > 1:
            why = (
                "the targets fit no better than chance; check that they count from 0 and are in the order of the inputs"
            )
        warnings.warn(
            f"calibrate: the temperature is at the end of its range, {found:.3g}: {why}.",
            stacklevel=4,
        )
    return found


def _coldest(prediction: Prediction) -> float:
    """The lowest temperature worth trying.

    The probit approximation divides Gaussian logits by sqrt(T^2 + pi var / 8). Far below the second term T changes
    these probabilities no more, so the data does not determine it; it only makes every draw of the logits more extreme.
    """
    if prediction.logit_variance is None:
        return COLDEST
    return min(max(COLDEST, 0.25 * math.sqrt(math.pi / 8 * float(prediction.logit_variance.median()))), 1.0)


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
