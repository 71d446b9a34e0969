r"""The outputs of an uncertainty file, as functions of the outputs of K networks, or of Gaussian outputs.

For class probabilities :math:`p_k` of K draws and their mean :math:`\bar p`, in nats:

.. math:: H[\bar p] = -\sum_c \bar p_c \log \bar p_c \qquad
          I = \frac1K \sum_k KL(p_k \| \bar p)
            = \frac1K \sum_k \sum_c \bar p_c\, g(p_{kc} / \bar p_c), \quad g(r) = r \log r - r + 1

The mutual information is the mean divergence of the draws from their mean (Depeweg et al. 2018, "Decomposition of
Uncertainty in Bayesian Deep Learning", equation 4). Taken as a sum of the terms g, none of which is negative, it keeps
its precision where the draws agree; as the difference of two entropies it would be rounding noise there.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bensemble.gaussian import precise
from bensemble.likelihoods import Bernoulli, Categorical, DiscreteLikelihood, Likelihood
from bensemble.prediction.closed import OutputGaussian, mixture
from bensemble.prediction.noise import FEW_PAIRS, MANY_PAIRS

__all__ = ["SCALES", "Statistics"]

#: For each output those whose size bounds its rounding error: it is a difference of numbers of that size.
SCALES = {
    "std": ("mean", "std"),
    "entropy": ("probs", "entropy"),
    "mutual_information": ("probs", "entropy", "mutual_information"),
    "lower": ("lower", "upper"),
    "upper": ("lower", "upper"),
}
#: By how much the outputs for binary labels may differ in any case: all of a batch may be close to 0, where a runtime's
#: sigmoid keeps few digits.
BINARY_SLACK = {"probs": 1e-6, "entropy": 5e-6, "mutual_information": 5e-6}

#: Below every probability that counts; the exporter writes numbers as float32, where that of float64 is 0.
TINY = torch.finfo(torch.float32).tiny


@dataclass(frozen=True)
class Statistics:
    """From the outputs of K networks to the outputs of the file.

    Attributes:
        likelihood: What the networks' outputs mean; None for raw outputs.
        temperature: Divides every draw's logits; in regression it multiplies the variances.
        conformal_threshold: Class c is in the prediction set where ``1 - probs[c]`` is at most this; in regression an
            interval reaches so many standard deviations to either side. None for neither.
    """

    likelihood: Likelihood | None = None
    temperature: float = 1.0
    conformal_threshold: float | None = None

    @property
    def slack(self) -> dict[str, float]:
        """By how much outputs of two correct programs may differ in any case."""
        return BINARY_SLACK if isinstance(self.likelihood, Bernoulli) else {}

    def of_samples(self, outputs: Tensor, paired: bool = False) -> dict[str, Tensor]:
        """The file's outputs.

        Args:
            outputs: Outputs of the networks, shape (K, B, ...).
            paired: Whether they are pairs of draws with opposite noise.

        Returns:
            By name, batch first, float32.
        """
        outputs = precise(outputs)
        if self.likelihood is None:
            return _float32(_moments(outputs, paired))
        if not isinstance(self.likelihood, DiscreteLikelihood):
            found = _moments(torch.vmap(self.likelihood.expect)(outputs), paired)
            return self._regression(found, torch.vmap(self.likelihood.spread)(outputs).mean(0))
        logits = outputs / self.temperature if self.temperature != 1.0 else outputs
        samples = torch.vmap(self.likelihood.expect)(logits)
        probs = samples.mean(0)
        answers = {
            "probs": probs,
            "entropy": self._entropy(probs),
            "mutual_information": self._information(samples, probs, logits),
        }
        return _float32(answers) | self._prediction_set(self.likelihood, probs)

    def of_gaussians(self, members: Sequence[OutputGaussian]) -> dict[str, Tensor]:
        """The file's outputs, from the Gaussian outputs of each member of an ensemble, or of one network."""
        likelihood = self.likelihood
        if not isinstance(likelihood, DiscreteLikelihood):
            found = mixture([member.prediction(likelihood, keep=False) for member in members])
            return _float32(found) if likelihood is None else self._regression(found, found["spread"])
        members = [member.divided_by(self.temperature) if self.temperature != 1.0 else member for member in members]
        each = [likelihood.expect(member.probit()) for member in members]
        probs = torch.stack(each).mean(0) if len(each) > 1 else each[0]
        entropy, between = self._entropy(probs), [self._between_draws(member) for member in members]
        if len(members) == 1:
            information = torch.minimum(between[0], entropy)
        else:
            inside = [(self._entropy(p) - own).clamp_min(0) for p, own in zip(each, between, strict=True)]
            information = (entropy - torch.stack(inside).mean(0)).clamp_min(0)
        answers = {"probs": probs, "entropy": entropy, "mutual_information": information}
        return _float32(answers) | self._prediction_set(likelihood, probs)

    def _between_draws(self, member: OutputGaussian) -> Tensor:
        """Mutual information between the prediction and the logits of one member; of images in parts."""
        likelihood, total, spreads = self.likelihood, [], []
        for logits in member.draws(MANY_PAIRS if member.mean.ndim < 4 else FEW_PAIRS // 2):
            if not isinstance(likelihood, Categorical):  # Bernoulli, whose functions look at each output alone
                assert isinstance(likelihood, DiscreteLikelihood)
                samples, spread = likelihood.expect(logits), likelihood.spread(logits)
            else:  # fewer and faster operators than the functions of the likelihood
                axis = likelihood.axis(member.mean)
                logs = logits.movedim(axis + 1, -1).log_softmax(-1)
                samples = logs.exp()
                spread = -(samples * logs).sum(-1)
                samples = samples.movedim(-1, axis + 1)
            total.append(samples.sum(0))
            spreads.append(spread.sum(0))
        probs, spread = (functools.reduce(torch.add, part) / member.num_draws for part in (total, spreads))
        return (self._entropy(probs) - spread).clamp_min(0)

    def _regression(self, found: dict[str, Tensor], noise: Tensor) -> dict[str, Tensor]:
        """Mean, deviations and, with a calibration, the conformal interval; the temperature multiplies variances."""
        mean, variance, noise = found["mean"], found["std"].square() * self.temperature, noise * self.temperature
        answers = {"mean": mean, "std": variance.sqrt(), "noise_std": noise.sqrt()}
        if self.conformal_threshold is not None:
            reach = self.conformal_threshold * (variance + noise).sqrt()
            answers |= {"lower": mean - reach, "upper": mean + reach}
        return _float32(answers)

    def _information(self, samples: Tensor, probs: Tensor, logits: Tensor) -> Tensor:
        """Mutual information between the prediction and the weights."""
        likelihood = self.likelihood
        assert isinstance(likelihood, DiscreteLikelihood)
        if isinstance(likelihood, Categorical):
            return _divergence(samples, probs).sum(likelihood.axis(probs)).clamp_min(0)
        if isinstance(likelihood, Bernoulli):
            return (_divergence(samples, probs) + _divergence(1 - samples, 1 - probs)).clamp_min(0)
        expected = torch.vmap(likelihood.spread)(logits).mean(0)
        return (likelihood.entropy(probs) - expected).clamp_min(0)

    def _entropy(self, probs: Tensor) -> Tensor:
        """Entropy of the prediction; for classes without ``torch.special.entr``, whose cases cost operators."""
        if not isinstance(self.likelihood, Categorical):
            assert isinstance(self.likelihood, DiscreteLikelihood)
            return self.likelihood.entropy(probs)
        logarithms = probs.clamp_min(TINY).log()
        return -(probs * logarithms).sum(self.likelihood.axis(probs))

    def _prediction_set(self, likelihood: DiscreteLikelihood, probs: Tensor) -> dict[str, Tensor]:
        if self.conformal_threshold is None:
            return {}
        return {"prediction_set": 1 - likelihood.class_probs(probs) <= self.conformal_threshold}


def _moments(samples: Tensor, paired: bool) -> dict[str, Tensor]:
    """Mean and standard deviation over the draws.

    K - 1 degrees of freedom; but K in pairs, whose mean is that of the posterior where the output is linear in the
    noise.
    """
    mean = samples.mean(0)
    variance = (samples - mean).square().sum(0) / (samples.shape[0] - (not paired))
    return {"mean": mean, "std": variance.sqrt()}


def _divergence(samples: Tensor, probs: Tensor) -> Tensor:
    r"""Mean over the draws of the terms :math:`\bar p\, g(p_k / \bar p)`, 0 where :math:`\bar p` is 0.

    Near one, g is flat: a rounded ratio gives the right value if both terms of g use that same ratio. There
    ``ratio - 1`` is exact, and the logarithm is exact to the last bit.
    """
    ratio = samples * (1 / probs.clamp_min(TINY))
    return probs * (ratio * ratio.clamp_min(TINY).log() - (ratio - 1)).mean(0)


def _float32(found: dict[str, Any]) -> dict[str, Tensor]:
    return {name: value.float() for name, value in found.items()}
