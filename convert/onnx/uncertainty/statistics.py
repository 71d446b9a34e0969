r"""What an uncertainty file answers, as functions of the outputs of K networks.

For class probabilities :math:`p_k` of K draws and their mean :math:`\bar p`, in nats:

.. math:: H[\bar p] = -\sum_c \bar p_c \log \bar p_c \qquad
          I = \frac1K \sum_k KL(p_k \| \bar p)
            = \frac1K \sum_k \sum_c \bar p_c\, g(p_{kc} / \bar p_c), \quad g(r) = r \log r - r + 1

The mutual information is the mean divergence of the draws from their mean (Depeweg et al. 2018, "Decomposition of
Uncertainty in Bayesian Deep Learning", equation 4). Taken as a sum of the terms g, none of which is negative, it keeps
its precision where the draws agree; as the difference of two entropies it would be rounding noise there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from bensemble.gaussian import precise
from bensemble.likelihoods import Bernoulli, Categorical, DiscreteLikelihood, Likelihood

__all__ = ["Statistics"]

#: The outputs that say how large the errors of another one may be: it is a difference of numbers of that size.
SCALES = {
    "std": ("mean", "std"),
    "entropy": ("probs", "entropy"),
    "mutual_information": ("probs", "entropy", "mutual_information"),
}


@dataclass(frozen=True)
class Statistics:
    """From the outputs of K networks to the outputs of the file.

    Attributes:
        likelihood: What the networks' outputs mean; None for raw outputs.
        temperature: Divides every draw's logits; in regression it multiplies the variances.
        conformal_threshold: Class c is in the prediction set where ``1 - probs[c]`` is at most this; None for no set.
    """

    likelihood: Likelihood | None = None
    temperature: float = 1.0
    conformal_threshold: float | None = None

    def of_samples(self, outputs: Tensor) -> dict[str, Tensor]:
        """The file's outputs.

        Args:
            outputs: Outputs of the networks, shape (K, B, ...).

        Returns:
            By name, batch first, float32.
        """
        outputs = precise(outputs)
        if self.likelihood is None:
            return _float32(_moments(outputs))
        if not isinstance(self.likelihood, DiscreteLikelihood):
            scale = self.temperature**0.5
            found = _moments(torch.vmap(self.likelihood.expect)(outputs))
            noise = torch.vmap(self.likelihood.spread)(outputs).mean(0).sqrt()
            return _float32({"mean": found["mean"], "std": found["std"] * scale, "noise_std": noise * scale})
        logits = outputs / self.temperature if self.temperature != 1.0 else outputs
        samples = torch.vmap(self.likelihood.expect)(logits)
        probs = samples.mean(0)
        answers = {
            "probs": probs,
            "entropy": self._entropy(probs),
            "mutual_information": self._information(samples, probs, logits),
        }
        return _float32(answers) | self._prediction_set(self.likelihood, probs)

    def of_moments(self, mean: Tensor, variance: Tensor) -> dict[str, Tensor]:
        """The file's outputs from mean and variance of a network's outputs, for likelihoods that need no more.

        Args:
            mean: Shape (B, ...).
            variance: The same shape.
        """
        mean, variance = precise(mean), precise(variance)
        if self.likelihood is None:
            return _float32({"mean": mean, "std": variance.sqrt()})
        noise = self.likelihood.spread(mean)
        scaled = {"std": variance * self.temperature, "noise_std": noise * self.temperature}
        return _float32({"mean": mean, **{name: value.sqrt() for name, value in scaled.items()}})

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
        """Entropy of the prediction; of classes without the cases of ``torch.special.entr``, an operator for each."""
        if not isinstance(self.likelihood, Categorical):
            assert isinstance(self.likelihood, DiscreteLikelihood)
            return self.likelihood.entropy(probs)
        logarithms = probs.clamp_min(torch.finfo(probs.dtype).tiny).log()
        return -(probs * logarithms).sum(self.likelihood.axis(probs))

    def _prediction_set(self, likelihood: DiscreteLikelihood, probs: Tensor) -> dict[str, Tensor]:
        if self.conformal_threshold is None:
            return {}
        return {"prediction_set": 1 - likelihood.class_probs(probs) <= self.conformal_threshold}


def _moments(samples: Tensor) -> dict[str, Tensor]:
    """Mean and standard deviation (of K - 1 degrees of freedom) over the draws."""
    mean = samples.mean(0)
    variance = (samples - mean).square().sum(0) / (samples.shape[0] - 1)
    return {"mean": mean, "std": variance.sqrt()}


def _divergence(samples: Tensor, probs: Tensor) -> Tensor:
    r"""Mean over the draws of the terms :math:`\bar p\, g(p_k / \bar p)`, 0 where :math:`\bar p` is 0.

    Near one, g is flat: a ratio that was rounded gives the right value, if both of its terms take that same ratio.
    There ``ratio - 1`` is exact, and so is the logarithm to the last bit.
    """
    tiny = torch.finfo(probs.dtype).tiny
    ratio = samples * (1 / probs.clamp_min(tiny))
    return probs * (ratio * ratio.clamp_min(tiny).log() - (ratio - 1)).mean(0)


def _float32(found: dict[str, Any]) -> dict[str, Tensor]:
    return {name: value.float() for name, value in found.items()}
