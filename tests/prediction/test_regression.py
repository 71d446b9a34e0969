"""Predictions of a regression: variances, intervals, quantiles."""

import pytest
import torch
from torch.testing import assert_close

from bensemble.errors import InvalidValueError
from bensemble.likelihoods import Gaussian, GaussianHead
from bensemble.prediction.monte_carlo import RegressionPrediction, predict

from .networks import X, bayesian, cnn, seeded


def test_regression_splits_the_variance():
    bnn = bayesian(cnn(4))
    raw = predict(bnn, X, 40, generator=seeded()).samples
    prediction = predict(bnn, X, 40, likelihood="gaussian_head", generator=seeded())
    assert isinstance(prediction, RegressionPrediction)
    mean, variance = raw[..., :2], raw[..., 2:].exp()
    assert_close(prediction.mean, mean.mean(0))
    assert_close(prediction.epistemic_std, mean.std(0))
    assert_close(prediction.noise_std, variance.mean(0).sqrt())
    assert_close(prediction.total_std, (mean.var(0) + variance.mean(0)).sqrt())
    known = predict(bnn, X, 40, likelihood=Gaussian(0.7), generator=seeded())
    assert_close(known.noise_std, torch.full((7, 4), 0.7))
    assert_close(known.mean, raw.mean(0))


@pytest.mark.parametrize("level", [0.5, 0.9, 0.99])
def test_the_interval_holds_its_share_of_the_mixture(level):
    bnn = bayesian(cnn(4), 1.0)
    prediction = predict(bnn, X, 40, likelihood="gaussian_head", generator=seeded())
    low, high = prediction.interval(level)
    mixture = torch.distributions.Normal(prediction.samples, prediction.noise_samples.sqrt())
    assert_close(mixture.cdf(low).mean(0), torch.full((7, 2), (1 - level) / 2), rtol=0, atol=1e-5)
    assert_close(mixture.cdf(high).mean(0), torch.full((7, 2), (1 + level) / 2), rtol=0, atol=1e-5)


def test_the_interval_is_normal_where_samples_were_not_kept():
    prediction = predict(bayesian(cnn(4)), X, 40, likelihood=GaussianHead(), keep_samples=False)
    low, high = prediction.interval(0.9)
    reference = torch.distributions.Normal(prediction.mean, prediction.total_std)
    assert_close(reference.cdf(low), torch.full((7, 2), 0.05))
    assert_close(reference.cdf(high), torch.full((7, 2), 0.95))


def test_quantiles_of_raw_outputs_are_those_of_the_samples():
    prediction = predict(bayesian(cnn()), X, 11)
    for q in (0.0, 0.05, 0.5, 0.77, 1.0):
        assert_close(prediction.quantile(q), prediction.samples.quantile(q, dim=0))
    low, high = prediction.interval(0.8)
    assert_close(low, prediction.samples.quantile(0.1, dim=0))
    assert_close(high, prediction.samples.quantile(0.9, dim=0))


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda p: p.quantile(1.5), r"quantile: q must be finite and at least 0 and at most 1, got 1\.5"),
        (lambda p: p.quantile(0.5), "quantile: the samples were not kept; call predict with keep_samples=True"),
        (lambda p: p.interval(1.0), r"interval: level must be finite and above 0 and below 1, got 1\.0"),
    ],
)
def test_quantiles_refuse(call, message):
    with pytest.raises(InvalidValueError, match=message):
        call(predict(cnn(), X, keep_samples=False))


def test_the_extreme_quantiles_of_a_gaussian_are_refused():
    with pytest.raises(InvalidValueError, match=r"quantile: q must be finite and above 0 and below 1, got 0\.0"):
        predict(cnn(), X, likelihood=Gaussian(1.0)).quantile(0.0)
