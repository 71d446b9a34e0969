"""Uncertainty files in closed form: what ``predict`` says, in one forward, calibrated."""

import dataclasses

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from closed_files import Dense, Head, Pixels, agree, exported, of, transformer
from drawn_networks import drawn_networks, for_anyone
from torch import nn

from bensemble import calibrate, fit_posterior, predict
from bensemble.likelihoods import Categorical, Gaussian
from convert import bayesify
from convert.onnx import export_onnx


def last_token(x, y):
    return y[torch.arange(x.shape[0]), (x != 0).sum(1) - 1]


TOKENS, ROWS = torch.randint(1, 11, (6, 5), generator=torch.Generator().manual_seed(1)), torch.randn(6, 5)
PIXELS = torch.randn(6, 2, 6, 7)
CASES = {
    "classes": (Dense, ROWS, "categorical"),
    "labels": (Dense, ROWS, "bernoulli"),
    "one logit": (lambda: Dense(1, lambda y: y.squeeze(-1)), ROWS, "bernoulli"),
    "regression": (lambda: Dense(2), ROWS, Gaussian(0.3)),
    "one number": (lambda: Dense(1, lambda y: y.squeeze(-1)), ROWS, Gaussian(0.3)),
    "raw": (Dense, ROWS, None),
    "tempered logits": (lambda: Dense(4, lambda y: {"logits": y / -1.5}), ROWS, "categorical"),
    "tokens": (lambda: Head(transformer, lambda x, y: {"logits": y / 1.5}), TOKENS, Categorical(-1)),
    "tokens, classes first": (lambda: Head(after=lambda x, y: y.transpose(1, 2)), TOKENS, Categorical(1)),
    "last token": (lambda: Head(after=last_token), TOKENS, "categorical"),
    "pixels": (Pixels, PIXELS, Categorical(1)),
    "enlarged pixels": (
        lambda: Pixels(lambda x, y: F.interpolate(y, size=(9, 8), mode="bicubic")),
        PIXELS,
        Categorical(1),
    ),
    "averaged pixels": (lambda: Pixels(lambda x, y: F.avg_pool2d(y, 2)), PIXELS, Gaussian(0.3)),
}


@pytest.mark.slow
@pytest.mark.parametrize("rotated", [True, False])
@pytest.mark.parametrize("case", CASES)
def test_a_file_in_closed_form_gives_what_predict_gives(case, rotated, tmp_path):
    make, x, likelihood = CASES[case]
    if not rotated and case not in ("classes", "regression", "pixels"):
        pytest.skip("three cases show the plain basis")
    bnn = of(make(), rotated)
    report, session = exported(tmp_path / "a.onnx", bnn, x[:1], likelihood=likelihood)
    prediction = predict(bnn, x, likelihood=likelihood)
    assert prediction.method == session.metadata["bensemble.method"] == "closed"
    answer = session(x.numpy())
    agree(answer, prediction)
    again = session(x.numpy())
    assert all(np.array_equal(answer[name], again[name]) for name in answer)
    assert report.relative_error < 1e-4  # of a single number close to 0


@pytest.mark.slow
def test_a_segmenter_takes_images_of_any_size(tmp_path):
    class Small(Pixels):
        def forward(self, x):
            return super().forward(F.avg_pool2d(x, 2)) | {"aux": x}

    bnn, likelihood = (
        of(Small(lambda x, y: F.interpolate(y, scale_factor=2, mode="bilinear")[..., 1:-1])),
        Categorical(1),
    )
    shapes = {"dynamic_shapes": {"x": {0: "batch", 2: "height", 3: "width"}}}
    _, session = exported(tmp_path / "a.onnx", bnn, PIXELS[:2], likelihood=likelihood, **shapes)
    for size in ((3, 2, 8, 12), (1, 2, 6, 10)):
        x = torch.randn(size)
        prediction = predict(bnn, x, likelihood=likelihood)
        assert prediction.method == "closed"
        agree(session(x.numpy()), prediction)


def test_noise_that_is_nothing_is_no_reason_to_refuse_a_file(tmp_path):
    """fit_posterior leaves none where it helps nothing: then the mutual information is rounding, at any input."""
    torch.manual_seed(11)
    network = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 10))
    bnn = bayesify(network, include="2", init_sigma=1e-7).eval()
    x = 5 * torch.randn(1, 8)
    export_onnx(bnn, tmp_path / "sure.onnx", x, outputs="uncertainty", likelihood="categorical")


@pytest.mark.slow
def test_one_logit_that_is_nearly_sure(tmp_path):
    """A runtime's sigmoid keeps few digits of a small probability."""
    x = torch.randn(200, 5)
    net = nn.Sequential(nn.Linear(5, 8), nn.ReLU(), nn.Linear(8, 1))
    with torch.no_grad():
        net[2].weight *= 60
        logits = net(x)
    assert float(logits.abs().max()) > 15
    model = bayesify(net, include="2", example_inputs=x)
    fit_posterior(model, [(x, logits.sigmoid().bernoulli())], likelihood="bernoulli")
    _, session = exported(tmp_path / "binary.onnx", model, x, likelihood="bernoulli")
    agree(session(x.numpy()), predict(model, x, likelihood="bernoulli"))


@pytest.mark.slow
def test_an_ensemble_of_last_layers_is_one_file(tmp_path):
    members, likelihood = [of(Dense()), of(Dense())], Gaussian(0.3)  # of classes: below, with novelty
    _, session = exported(tmp_path / "a.onnx", members, ROWS[:1], likelihood=likelihood)
    agree(session(ROWS.numpy()), predict(members, ROWS, likelihood=likelihood))


@pytest.mark.slow
def test_a_temperature_and_sets_are_those_of_python(tmp_path):
    bnn, x = of(Dense()), torch.randn(200, 5)
    prediction = predict(bnn, x, likelihood="categorical")
    truth = torch.multinomial((prediction.probs.log() * 0.5).softmax(1), 1)[:, 0]
    calibration = calibrate(prediction, truth)
    _, session = exported(tmp_path / "a.onnx", bnn, x[:1], likelihood="categorical", calibration=calibration)
    answer, tempered = session(x.numpy()), calibration.apply(prediction)
    agree(answer, tempered, ("probs", "entropy", "mutual_information"))
    assert np.array_equal(answer.prediction_set, calibration.prediction_set(prediction).numpy())
    assert calibration.temperature > 1.2


@pytest.mark.parametrize("method", ["closed", "samples"])
def test_the_interval_of_a_regression_is_that_of_python(method, tmp_path):
    bnn, x, likelihood = of(Dense(2)), torch.randn(200, 5), Gaussian(0.3)
    seeded = torch.Generator().manual_seed(0)
    if method == "samples":
        bnn.head.is_last = False
    prediction = predict(bnn, x, 16, likelihood=likelihood, generator=seeded)
    calibration = calibrate(prediction, prediction.mean + 0.7 * torch.randn(200, 2))
    _, session = exported(
        tmp_path / "a.onnx", bnn, x[:1], likelihood=likelihood, calibration=calibration, method=method
    )
    answer = session(x.numpy())
    if method == "samples":  # the mean of pairs needs no degree of freedom
        drawn = predict(drawn_networks(bnn, tmp_path / "a.onnx"), x, likelihood=likelihood)
        prediction = dataclasses.replace(drawn, std=drawn.std * (15 / 16) ** 0.5)
        calibration = for_anyone(calibration)
    for name, expected in zip(("lower", "upper"), calibration.interval(prediction), strict=True):
        np.testing.assert_allclose(answer[name], expected.numpy(), atol=2e-5)
    assert all(map(np.array_equal, answer.interval(), (answer.lower, answer.upper)))
