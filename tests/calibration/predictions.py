"""Predictions with targets, drawn so that their temperature is known."""

import torch

from bensemble.likelihoods import Categorical, Gaussian
from bensemble.prediction.results import ClassPrediction, RegressionPrediction


def classes(logits, **more):
    """The prediction whose samples have the given logits, (S, B, C)."""
    likelihood = more.pop("likelihood", Categorical())
    samples = torch.stack([likelihood.expect(s) for s in logits])
    return ClassPrediction(
        mean=samples.mean(0),
        std=samples.std(0) if len(samples) > 1 else torch.zeros_like(samples[0]),
        num_samples=len(samples),
        samples=samples,
        likelihood=likelihood,
        expected_entropy=torch.stack([likelihood.spread(s) for s in logits]).mean(0),
        **more,
    )


def drawn(n, seed, classes_=5, samples=8, heat=3.0):
    """Overconfident predictions and targets: the truth follows softer logits than every sample says."""
    generator = torch.Generator().manual_seed(seed)
    logits = torch.randn(n, classes_, generator=generator)
    targets = torch.multinomial(logits.softmax(-1), 1, generator=generator).squeeze(-1)
    noise = torch.randn(samples, n, classes_, generator=generator)
    return classes(heat * (logits + 0.5 * noise)), targets


def regression(n, seed, samples=8, scale=0.5):
    generator = torch.Generator().manual_seed(seed)
    truth = torch.randn(n, 2, generator=generator)
    targets = truth + torch.randn(n, 2, generator=generator)
    kept = truth + 0.3 * torch.randn(samples, n, 2, generator=generator)
    noise = torch.full((samples, n, 2), scale**2)
    prediction = RegressionPrediction(
        mean=kept.mean(0), std=kept.std(0), num_samples=samples, samples=kept,
        noise_variance=noise.mean(0), noise_samples=noise, likelihood=Gaussian(scale),
    )  # fmt: skip
    return prediction, targets
