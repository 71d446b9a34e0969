"""The temperature and the conformal threshold: what they promise, and that they keep it."""

import math

import pytest
import torch
from scipy.optimize import minimize_scalar
from torch import nn
from torch.testing import assert_close

from bensemble import calibrate, predict
from bensemble.likelihoods import Bernoulli, Categorical
from convert import bayesify

from .predictions import classes, drawn, regression


@pytest.mark.parametrize("scale", [1.0, 60.0])
@pytest.mark.parametrize("likelihood", [Categorical(), Bernoulli()])
@pytest.mark.filterwarnings("ignore:calibrate:")
def test_a_temperature_sees_logits_whose_probabilities_are_rounded_to_one(likelihood, scale):
    net = nn.Linear(2, 3, bias=False)
    net.weight.data = torch.tensor([[1.0, 0.0], [-1.0, 0.0], [-1.5, 0.0]])
    x = scale * torch.tensor([[1.0, 0.0], [-1.0, 0.0]])
    truth = torch.tensor([0, 2]) if isinstance(likelihood, Categorical) else torch.ones(2, 3)
    bnn = bayesify(net)
    bnn.w_rho.data.fill_(-16)[0] = -17
    for model in (net, bnn):
        prediction = predict(model, x, 4, likelihood=likelihood)
        tempered = calibrate(prediction, truth, temperature=40.0).apply(prediction)
        assert_close(tempered.probs, likelihood.expect(net(x) / 40), rtol=1e-4, atol=1e-6)
    batches = predict(net, [(part,) for part in x.split(1)], likelihood=likelihood)
    assert_close(calibrate(batches, truth, temperature=40.0).apply(batches).probs, tempered.probs, rtol=1e-4, atol=0)


def test_the_temperature_divides_the_logits_of_every_sample():
    generator = torch.Generator().manual_seed(0)
    logits = 4 * torch.randn(6, 50, 3, generator=generator)
    calibration = calibrate(classes(logits), torch.zeros(50).long(), temperature=2.5)
    tempered, expected = calibration.apply(classes(logits)), (logits / 2.5).softmax(-1)
    assert tempered.temperature == 2.5
    assert_close(tempered.samples, expected)
    assert_close(tempered.mean, expected.mean(0))
    assert_close(tempered.std, expected.std(0))
    assert_close(tempered.expected_entropy, torch.special.entr(expected).sum(-1).mean(0))
    assert calibration.apply(tempered) is tempered
    assert torch.equal(calibration.prediction_set(tempered), calibration.prediction_set(classes(logits)))


def test_the_temperature_is_that_of_the_highest_likelihood():
    prediction, targets = drawn(400, 0)

    def nll(t):
        probs = (prediction.samples.double().log() / t).softmax(-1).mean(0)
        return float(-probs[torch.arange(400), targets].log().mean())

    expected = minimize_scalar(nll, bounds=(0.05, 20), method="bounded", options={"xatol": 1e-8}).x
    assert calibrate(prediction, targets).temperature == pytest.approx(expected, rel=1e-3)
    assert expected > 1.5


@pytest.mark.filterwarnings("ignore:calibrate:")
def test_at_the_extremes_of_probability_nothing_breaks():
    prediction = classes(torch.tensor([[[200.0, 0.0, -200.0], [0.0, 150.0, 0.0], [1.0, 0.0, 0.0]]]))
    assert float(prediction.mean.min()) == 0.0
    tempered = calibrate(prediction, torch.tensor([1, 1, 0]), temperature=4.0).apply(prediction)
    assert tempered.mean.isfinite().all()
    assert 1 < calibrate(prediction, torch.tensor([0, 1, 1])).temperature < 20
    likely = classes(torch.tensor([[[200.0, 0.0]] * 10 + [[0.0, 200.0]]]))
    assert calibrate(likely, torch.zeros(11).long()).temperature > 1


@pytest.mark.parametrize("alpha", [0.1, 0.05])
@pytest.mark.parametrize("kind", ["classes", "regression"])
def test_conformal_sets_reach_their_coverage(kind, alpha):
    draw = drawn if kind == "classes" else regression
    (seen, truth), (unseen, later) = draw(2000, 1), draw(5000, 2)
    calibration = calibrate(seen, truth, alpha)
    if kind == "classes":
        covered = calibration.prediction_set(unseen).gather(1, later[:, None]).float()
    else:
        low, high = calibration.interval(unseen)
        covered = ((low <= later) & (later <= high)).float()
    error = math.sqrt(alpha * (1 - alpha) * (1 / truth.numel() + 1 / later.numel()))
    assert abs(float(covered.mean()) - (1 - alpha)) < 3 * error
    assert calibration.num_data == truth.numel()


@pytest.mark.slow
def test_coverage_holds_on_average_for_small_calibration_sets_too():
    # The temperature is fitted to the same 40 examples. The coverage of a set follows Beta(37, 4), 37 being the rank of
    # the threshold: mean 37/41, variance a b / ((a + b)^2 (a + b + 1)).
    found = []
    for seed in range(150):
        prediction, targets = drawn(240, seed)
        seen, unseen = _rows(prediction, slice(40)), _rows(prediction, slice(40, None))
        calibration = calibrate(seen, targets[:40])
        found.append(calibration.prediction_set(unseen).gather(1, targets[40:, None]).float().mean())
    error = math.sqrt((37 * 4 / (41**2 * 42) + 0.1 * 0.9 / 200) / 150)
    assert abs(float(torch.stack(found).mean()) - 37 / 41) < 4 * error


def _rows(prediction, rows):
    return classes(prediction.samples[:, rows].log())


@pytest.mark.filterwarnings("ignore:calibrate:")
def test_the_threshold_is_the_finite_sample_quantile():
    prediction, targets = drawn(99, 3)
    scores = (1 - prediction.mean[torch.arange(99), targets]).sort().values
    for alpha, rank in [(0.1, 90), (0.05, 95), (0.5, 50), (0.01, 99)]:
        calibration = calibrate(prediction, targets, alpha, temperature=1.0)
        assert calibration.conformal_threshold == pytest.approx(float(scores[rank - 1]), abs=1.1e-6)
        assert calibration.conformal_threshold > float(scores[rank - 1])
    everything = calibrate(prediction, targets, 0.009, temperature=1.0)
    assert everything.conformal_threshold == 1.0
    assert everything.prediction_set(prediction).all()
    intervals = calibrate(*regression(4, 0), alpha=0.1)
    assert intervals.conformal_threshold == math.inf
    assert intervals.interval(regression(4, 1)[0])[0].max() == -math.inf


def test_more_misses_than_hits_are_done_and_warned_of():
    prediction, targets = drawn(99, 3)
    scores = (1 - prediction.mean[torch.arange(99), targets]).sort().values
    with pytest.warns(UserWarning, match=r"got 0\.9; 0\.1 gives sets that contain it in 0\.9 of the cases") as caught:
        calibration = calibrate(prediction, targets, 0.9, temperature=1.0)
    assert calibration.conformal_threshold == pytest.approx(float(scores[9]), abs=1.1e-6)
    assert caught[0].filename == __file__


@pytest.mark.filterwarnings("ignore:calibrate:")
def test_the_reference_holds_quantiles_after_tempering():
    prediction, targets = drawn(300, 4)
    calibration = calibrate(prediction, targets)
    tempered = calibration.apply(prediction)
    assert list(calibration.reference) == ["entropy", "mutual_information"]
    for name, found in calibration.reference.items():
        values = getattr(tempered, name)
        assert_close(torch.tensor(found), values.quantile(torch.linspace(0, 1, 101)), rtol=1e-4, atol=1e-6)
    assert (
        len(set(calibrate(classes(torch.zeros(2, 1, 3)), torch.tensor([0]), temperature=1.0).reference["entropy"])) == 1
    )


def test_the_scale_of_a_regression_is_that_of_the_highest_likelihood():
    prediction, targets = regression(3000, 5)
    calibration = calibrate(prediction, targets)
    tempered = calibration.apply(prediction)
    assert list(calibration.reference) == ["total_std", "epistemic_std"]
    assert_close(tempered.total_std, prediction.total_std * math.sqrt(calibration.temperature))
    assert float(((targets - tempered.mean) / tempered.total_std).square().mean()) == pytest.approx(1, abs=1e-5)
    assert_close(tempered.samples.std(0), tempered.std)
    assert_close(tempered.noise_samples.mean(0), tempered.noise_variance)
    assert_close(tempered.samples.mean(0), prediction.mean)
