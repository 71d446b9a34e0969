"""``calibrate`` as a whole: what it takes, keeps in JSON, prints and refuses."""

import json

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from bensemble import Calibration, calibrate, predict
from bensemble.errors import InvalidTypeError, InvalidValueError
from bensemble.likelihoods import Bernoulli, Categorical, DiscreteLikelihood

from .predictions import classes, drawn, regression


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


@pytest.mark.filterwarnings("ignore:calibrate:")
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


@pytest.mark.filterwarnings("ignore:calibrate:")
def test_a_temperature_that_the_data_does_not_determine_warns():
    prediction = classes(torch.eye(3).expand(2, 3, 3) * 5)
    with pytest.warns(
        UserWarning, match=r"the temperature is at the end of its range, 0\.01.*pass temperature=1\.0"
    ) as w:
        calibrate(prediction, torch.arange(3))
    assert w[0].filename == __file__
    with pytest.warns(
        UserWarning, match="end of its range, 100: the targets fit no better than chance; check that they"
    ):
        calibrate(prediction, torch.arange(3).roll(1))


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


def test_too_few_terms_for_alpha_are_said():
    few, enough = drawn(8, seed=0), drawn(9, seed=0)
    with pytest.warns(
        UserWarning, match=r"8 terms give no sets that hold at alpha 0\.1, so every set .*; calibrate on 9 "
    ) as w:
        assert bool(calibrate(*few).prediction_set(few[0]).all())
    assert w[0].filename == __file__
    calibrate(*enough)
    prediction, targets = regression(4, seed=0)
    with pytest.warns(UserWarning, match=r"8 terms give no .*, so every interval is infinite; calibrate on 9 or more"):
        assert bool(calibrate(prediction, targets).interval(prediction)[1].isinf().all())


def test_a_regression_in_other_units_is_said():
    prediction, targets = regression(200, seed=0)
    words = "the error of the means is .*, and that of one constant would be .*; check that outputs and targets"
    for wrong in (100 + 20 * targets, -targets):
        with pytest.warns(UserWarning, match=words):
            calibrate(prediction, wrong)
    calibrate(prediction, targets)
