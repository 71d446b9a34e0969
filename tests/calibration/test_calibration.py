import json
import math

import pytest
import torch
from scipy.optimize import minimize_scalar
from torch import nn
from torch.testing import assert_close

from bensemble import Calibration, calibrate, predict
from bensemble.errors import InvalidTypeError, InvalidValueError
from bensemble.likelihoods import Bernoulli, Categorical, DiscreteLikelihood, Gaussian
from bensemble.prediction.results import ClassPrediction, RegressionPrediction
from convert import bayesify


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


@pytest.mark.parametrize("scale", [1.0, 60.0])
@pytest.mark.parametrize("likelihood", [Categorical(), Bernoulli()])
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


def test_the_threshold_is_the_finite_sample_quantile():
    prediction, targets = drawn(99, 3)
    scores = (1 - prediction.mean[torch.arange(99), targets]).sort().values
    for alpha, rank in [(0.1, 90), (0.05, 95), (0.9, 10), (0.01, 99)]:
        calibration = calibrate(prediction, targets, alpha, temperature=1.0)
        assert calibration.conformal_threshold == pytest.approx(float(scores[rank - 1]), abs=1.1e-6)
        assert calibration.conformal_threshold > float(scores[rank - 1])
    everything = calibrate(prediction, targets, 0.009, temperature=1.0)
    assert everything.conformal_threshold == 1.0
    assert everything.prediction_set(prediction).all()
    intervals = calibrate(*regression(4, 0), alpha=0.1)
    assert intervals.conformal_threshold == math.inf
    assert intervals.interval(regression(4, 1)[0])[0].max() == -math.inf


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


def test_yes_and_no_are_two_classes():
    generator = torch.Generator().manual_seed(0)
    truth = torch.randn(2000, 2, generator=generator)
    targets = (torch.rand(2000, 2, generator=generator) < truth.sigmoid()).float()
    noise = torch.randn(6, 2000, 2, generator=generator)
    prediction = classes(3 * truth + noise, likelihood=Bernoulli())
    calibration = calibrate(prediction, targets)
    as_classes = classes(torch.stack((torch.zeros_like(noise), 3 * truth + noise), -1).flatten(1, 2))
    other = calibrate(as_classes, targets.flatten().long())
    assert calibration.temperature == pytest.approx(other.temperature, rel=1e-3)
    assert calibration.conformal_threshold == pytest.approx(other.conformal_threshold, abs=1e-4)
    sets = calibration.prediction_set(prediction)
    assert sets.shape == (2000, 2, 2)
    assert float((sets.flatten(0, 1) == other.prediction_set(as_classes)).float().mean()) > 0.999


def test_positions_that_are_ignored_do_not_count():
    logits = torch.randn(4, 10, 7, 3, generator=torch.Generator().manual_seed(0))
    targets = logits.mean(0).argmax(-1)
    flat = calibrate(classes(logits[:, :, :4].flatten(1, 2)), targets[:, :4].flatten())
    targets[:, 4:] = -100
    found = calibrate(classes(logits, likelihood=Categorical(dim=-1)), targets)
    assert found.num_data == 40
    assert found.temperature == pytest.approx(flat.temperature)
    assert found.conformal_threshold == pytest.approx(flat.conformal_threshold)
    assert found.prediction_set(classes(logits, likelihood=Categorical(dim=-1))).shape == (10, 7, 3)


def test_a_deterministic_model_is_one_sample():
    net, x = nn.Linear(4, 3), torch.randn(60, 4)
    targets = net(x).mul(0.3).softmax(-1).multinomial(1).squeeze(-1)
    kept, running = predict(net, x, likelihood="categorical"), predict(net, [x], likelihood="categorical")
    assert running.samples is None
    calibration = calibrate(running, targets)
    assert calibration == calibrate(kept, targets)
    assert_close(calibration.apply(running).mean, (net(x) / calibration.temperature).softmax(-1).detach())


def test_json_brings_back_the_same_calibration():
    for calibration in (calibrate(*drawn(50, 0)), calibrate(*regression(4, 0))):
        text = calibration.to_json()
        assert json.loads(text)["version"] == 2
        assert Calibration.from_json(text) == calibration
    assert json.loads(text)["conformal_threshold"] is None


def test_a_calibration_prints():
    shown = repr(calibrate(*drawn(1200, 0)))
    assert shown.startswith("Calibration on 1,200 terms\n  temperature  ")
    assert "(alpha 0.1)" in shown
    assert "mutual_information" in shown


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"version": 1}', '{"version": 1, "conformal_threshold": "x", "reference": {}}']
)
def test_other_text_is_no_calibration(text):
    with pytest.raises(InvalidValueError, match=r"from_json: text must be what Calibration\.to_json wrote, got"):
        Calibration.from_json(text)


def test_a_newer_version_is_refused():
    text = calibrate(*drawn(50, 0)).to_json().replace('"version": 2', '"version": 3')
    with pytest.raises(InvalidValueError, match="from_json: version must be 2, got 3; update bensemble"):
        Calibration.from_json(text)


def test_a_temperature_that_the_data_does_not_determine_warns():
    prediction = classes(torch.eye(3).expand(2, 3, 3) * 5)
    with pytest.warns(
        UserWarning, match=r"the temperature is at the end of its range, 0\.01.*pass temperature=1\.0"
    ) as w:
        calibrate(prediction, torch.arange(3))
    assert w[0].filename == __file__


GOOD, TRUTH = drawn(20, 0)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"alpha": 1.0}, InvalidValueError, r"calibrate: alpha must be finite and above 0 and below 1, got 1\.0"),
        ({"temperature": 0.0}, InvalidValueError, r"calibrate: temperature must be finite and above 0, got 0\.0"),
        ({"prediction": 3}, InvalidTypeError, "calibrate: prediction must be of classes or of a regression, got int"),
        ({"targets": [1, 2]}, InvalidTypeError, "calibrate: target must be a tensor, got list"),
        ({"targets": TRUTH[:3]}, InvalidValueError, r"Categorical: target must have shape \(20,\)"),
        (
            {"targets": torch.full((20,), -100), "temperature": 1.0},
            InvalidValueError,
            "at least one that counts, got none",
        ),
        ({"targets": torch.full((20,), -100)}, InvalidValueError, "at least one that counts, got none"),
    ],
)
def test_calibrate_refuses(arguments, error, message):
    with pytest.raises(error, match=message):
        calibrate(**{"prediction": GOOD, "targets": TRUTH} | arguments)


def test_tempering_needs_samples_and_happens_once():
    net, x = nn.Linear(2, 3), torch.randn(20, 2)
    ensemble = predict([net, nn.Linear(2, 3)], [x], likelihood="categorical")
    with pytest.raises(InvalidValueError, match=r"must hold its samples.*call predict with keep_samples=True"):
        calibrate(ensemble, torch.zeros(20).long())
    assert calibrate(ensemble, torch.zeros(20).long(), temperature=1.0).apply(ensemble) is ensemble
    first, second = (calibrate(GOOD, TRUTH[:20] * 0, temperature=t) for t in (2.0, 3.0))
    with pytest.raises(InvalidValueError, match="apply: prediction must not be tempered yet, got temperature 2"):
        second.apply(first.apply(GOOD))
    with pytest.raises(InvalidValueError, match="calibrate: prediction must not be tempered yet, got temperature 2"):
        calibrate(first.apply(GOOD), TRUTH)


def test_each_kind_of_prediction_has_its_own_calibration():
    of_classes, of_numbers = calibrate(*drawn(50, 0)), calibrate(*regression(50, 0))
    with pytest.raises(InvalidTypeError, match="apply: prediction must have entropy and mutual_information, got Regr"):
        of_classes.apply(regression(50, 0)[0])
    with pytest.raises(InvalidTypeError, match="interval: prediction must be of a regression, got ClassPrediction"):
        of_classes.interval(GOOD)
    with pytest.raises(InvalidTypeError, match="prediction_set: prediction must be of classes, got RegressionPredict"):
        of_numbers.prediction_set(regression(50, 0)[0])
    with pytest.raises(
        InvalidTypeError, match="apply: prediction must be of classes or of a regression, got Prediction"
    ):
        of_classes.apply(predict(nn.Linear(2, 2), torch.zeros(3, 2)))


def test_soft_targets_and_other_likelihoods_are_refused():
    prediction = classes(torch.randn(2, 5, 1), likelihood=Bernoulli())
    with pytest.raises(
        InvalidValueError, match="calibrate: target must hold 0 and 1 for Bernoulli, got values between"
    ):
        calibrate(prediction, torch.full((5, 1), 0.5))

    class Own(DiscreteLikelihood):
        terms = expect = spread = entropy = Bernoulli.expect

    own = Own()
    for method, arguments in [("logits", (TRUTH,)), ("probability", (TRUTH, TRUTH)), ("class_probs", (TRUTH,))]:
        with pytest.raises(InvalidTypeError, match=rf"calibrate: Own does not define {method}\("):
            getattr(own, method)(*arguments)
