"""Uncertainty files in closed form: what ``predict`` says, in one forward, with novelty and calibration in them."""

import dataclasses
import json

import numpy as np
import onnx
import pytest
import torch
from drawn_networks import drawn_networks, for_anyone
from torch import nn

import bensemble
from bensemble import calibrate, fit_novelty, fit_posterior, predict
from bensemble.basis import Basis
from bensemble.errors import InvalidTypeError, InvalidValueError
from bensemble.likelihoods import Categorical, Gaussian
from convert import bayesify
from convert.onnx import export_onnx
from convert.onnx.uncertainty.novelty import FileNovelty
from convert.runtime import Monitor, UncertaintySession


class Head(nn.Module):
    """Tokens, a body and a head; what follows the head is given."""

    def __init__(self, body=nn.Tanh, after=lambda x, y: y):
        super().__init__()
        self.embed, self.body = nn.Embedding(11, 6), body()
        self.head, self.after = nn.Linear(6, 4), after

    def forward(self, x):
        return self.after(x, self.head(self.body(self.embed(x))))


def transformer():
    return nn.TransformerEncoderLayer(6, 2, 12, batch_first=True, dropout=0.0)


class Pixels(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Conv2d(2, 5, 3, padding=1), nn.Conv2d(5, 3, 1)

    def forward(self, x):
        return {"out": self.head(torch.tanh(self.body(x)))}


class Dense(nn.Module):
    def __init__(self, width=4, after=lambda y: y):
        super().__init__()
        self.body, self.head, self.after = nn.Sequential(nn.Linear(5, 7), nn.Tanh()), nn.Linear(7, width), after

    def forward(self, x):
        return self.after(self.head(self.body(x)))


def last_token(x, y):
    return y[torch.arange(x.shape[0]), (x != 0).sum(1) - 1]


TOKENS, ROWS = torch.randint(1, 11, (6, 5), generator=torch.Generator().manual_seed(1)), torch.randn(6, 5)
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
    "pixels": (Pixels, torch.randn(6, 2, 6, 7), Categorical(1)),
}


def of(model, rotated=True):
    """A posterior of the last layer in a basis of its own, with many sigmas."""
    bnn = bayesify(model.eval(), include="head")
    bnn.head.is_last = True
    weight, bias = bnn.head._posterior("weight"), bnn.head._posterior("bias")
    outer, inner = (torch.linalg.qr(torch.randn(n, n))[0] for n in bnn.head.w_mu.shape[:2])
    if rotated:
        weight.set_basis(Basis(outer, inner))
        bias.set_basis(Basis(outer))
    with torch.no_grad():
        for posterior in bnn.head.posteriors():
            posterior.rho.uniform_(-3, -1)
    return bnn


def exported(path, model, example, **options):
    """The report and the session of an uncertainty file."""
    report = export_onnx(model, path, example, outputs="uncertainty", **options)
    return report, UncertaintySession(path)


def agree(answer, prediction, names=None):
    """The outputs of a file are those of a prediction."""
    for name in names or answer:
        expected = getattr(prediction, name).numpy()
        assert answer[name].shape == expected.shape
        np.testing.assert_allclose(answer[name], expected, atol=1e-5 * max(1.0, abs(expected).max()), err_msg=name)


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


@pytest.fixture(scope="module")
def familiar():
    """A trained network with its data: two classes around two points."""
    torch.manual_seed(0)
    y = torch.arange(900) % 2
    x = torch.randn(900, 5) + 2 * y[:, None]
    net = Dense(2)
    optimizer = torch.optim.Adam(net.parameters(), 0.01)
    for _ in range(60):
        optimizer.zero_grad()
        nn.functional.cross_entropy(net(x[:500]), y[:500]).backward()
        optimizer.step()
    fresh = torch.randn(400, 5) + 2 * y[:400, None]
    return net.eval(), [(x[:500], y[:500])], [(x[500:], y[500:])], torch.cat([fresh, 5 + 3 * torch.randn(50, 5)])


def same_novelty(session, prediction, x):
    """Scores agree, and p-values do but where a score is as good as a held-out one."""
    answer = session(x.numpy())
    scores, pvalues = prediction.novelty.numpy(), prediction.novelty_pvalue.numpy()
    np.testing.assert_allclose(answer.novelty, scores, atol=1e-5 * scores.std(), rtol=1e-5)
    assert np.mean(abs(answer.novelty_pvalue - pvalues) > 1e-6) < 0.02
    assert abs(answer.novelty_pvalue - pvalues).max() < 3 * prediction.smallest_pvalue


EACH = {"joint": False, "projection": None}


@pytest.mark.slow
@pytest.mark.parametrize(
    ("kind", "options"),
    [("plain", {}), ("closed", {"projection": 4}), ("closed", EACH), ("samples", {}), ("ensemble", EACH)],
)
def test_novelty_is_in_the_file(familiar, kind, options, tmp_path):
    net, train, heldout, x = familiar
    make = {"plain": lambda: net, "closed": lambda: of(net), "samples": lambda: sampled(net)}
    models = [of(net), of(net)] if kind == "ensemble" else [make[kind]()]
    novelty = [fit_novelty(model, train, heldout, layers=["body.0", "body"], **options) for model in models]
    model, novelty = (models, novelty) if kind == "ensemble" else (models[0], novelty[0])
    report, session = exported(tmp_path / "a.onnx", model, x[:1], likelihood="categorical", novelty=novelty)
    seeded = torch.Generator().manual_seed(0)
    prediction = predict(model, x, 16, likelihood="categorical", novelty=novelty, generator=seeded)
    same_novelty(session, prediction, x)
    if kind == "samples":
        prediction = predict(drawn_networks(model, tmp_path / "a.onnx"), x, likelihood="categorical")
    agree(session(x.numpy()), prediction, ("probs", "entropy", "mutual_information"))
    assert session.metadata["bensemble.method"] == ("closed" if kind in ("closed", "ensemble") else "samples")
    assert "novelty_pvalue" in str(report)
    if kind == "plain":
        assert sum(1 for node in onnx.load(tmp_path / "a.onnx").graph.node if node.op_type == "Tanh") == 1


def sampled(net):
    bnn = bayesify(net)
    with torch.no_grad():
        for _, posterior in bensemble.named_posteriors(bnn):
            posterior.rho.uniform_(-4, -3)
    return bnn


@pytest.mark.parametrize("count", [30, 1022, 1023, 1024, 1025, 3000])
def test_many_held_out_scores_are_searched_in_two_steps(familiar, count):
    net, train, _, x = familiar
    y = torch.arange(count) % 2
    novelty = fit_novelty(net, train, [(torch.randn(count, 5) + 2 * y[:, None], y)])
    scores = torch.cat([novelty.score(x).float(), torch.tensor([-1e9, 1e9, torch.inf])])
    found = FileNovelty(novelty, [net], [net]).outputs([scores])["novelty_pvalue"]
    torch.testing.assert_close(found, novelty.pvalue(scores), atol=1.1 / (count + 1), rtol=0)
    assert float((found - novelty.pvalue(scores)).abs().median()) < 1e-6


@pytest.mark.slow
def test_an_input_that_is_no_number_is_a_stranger(familiar, tmp_path):
    net, train, heldout, x = familiar
    novelty = fit_novelty(net, train, heldout)
    _, session = exported(tmp_path / "a.onnx", net, x[:1], likelihood="categorical", novelty=novelty)
    for value in (np.nan, np.inf, 1e30):
        assert session(np.full((1, 5), value, np.float32)).novelty_pvalue[0] <= novelty.smallest_pvalue * 1.01


class Twice(nn.Module):
    """A parametrized layer that is called twice, and ``len`` of a tensor, which must not fix the batch."""

    def __init__(self):
        super().__init__()
        self.body, self.head = nn.utils.parametrizations.weight_norm(nn.Linear(6, 6)), nn.Linear(6, 3)

    def forward(self, x):
        h = self.body(self.body(x).tanh()).reshape(len(x) * 2, 3)
        return self.head(h.tanh().reshape(len(x), 6))


@pytest.mark.parametrize("method", ["closed", "samples"])
def test_layers_called_twice_and_lengths_vary_with_the_batch(tmp_path, method):
    x, y = torch.randn(60, 6), torch.arange(60) % 3
    bnn = of(Twice(), rotated=False)
    novelty = fit_novelty(bnn, [(x[:30], y[:30])], [(x[30:], y[30:])], layers=["body"])
    options = {"method": method} | ({"num_samples": 2} if method == "samples" else {})
    _, session = exported(tmp_path / "a.onnx", bnn, x[:8], likelihood="categorical", novelty=novelty, **options)
    np.testing.assert_allclose(session(x[:5].numpy()).novelty, novelty.score(x[:5]), atol=3e-5)
    assert "len" not in globals()


@pytest.mark.slow
def test_novelty_of_tokens_is_one_number_for_each(tmp_path):
    net, y = Head(transformer).eval(), torch.randint(4, (40, 5))
    x = torch.randint(1, 11, (40, 5))
    novelty = fit_novelty(net, [(x[:20], y[:20])], [(x[20:], y[20:])], likelihood=Categorical(-1))
    _, session = exported(tmp_path / "a.onnx", of(net), x[:1], likelihood=Categorical(-1), novelty=novelty)
    found = session(x.numpy())
    assert found.novelty.shape == found.entropy.shape == (40, 5)
    np.testing.assert_allclose(found.novelty, novelty.score(x), atol=3e-5)


class Register(Head):
    """A first token of its own, which the output leaves out, so that a layer has other positions than the output."""

    def forward(self, x):
        h = self.embed(torch.cat([torch.zeros_like(x[:, :1]), x], 1))
        return self.head(self.body(h)[:, 1:])


def test_novelty_of_layers_with_other_positions_holds_for_other_batches(tmp_path):
    net, y = Register(lambda: nn.Linear(6, 6)).eval(), torch.randint(4, (40, 5))
    x = torch.randint(1, 11, (40, 5))
    novelty = fit_novelty(net, [(x[:20], y[:20])], [(x[20:], y[20:])], likelihood=Categorical(-1))
    _, session = exported(tmp_path / "a.onnx", of(net), x[:4], likelihood=Categorical(-1), novelty=novelty)
    np.testing.assert_allclose(session(x.numpy()).novelty, novelty.score(x), atol=3e-5)


@pytest.mark.slow
def test_a_monitor_watches_novelty(familiar, tmp_path):
    net, train, heldout, x = familiar
    novelty = fit_novelty(net, train, heldout)
    _, session = exported(tmp_path / "a.onnx", net, x[:1], likelihood="categorical", novelty=novelty)
    assert len(session.reference["novelty"]) == 101
    calm, shifted = Monitor(session), Monitor(session)
    calm.update(session(heldout[0][0].numpy()))
    shifted.update(session((heldout[0][0] * 2 + 3).numpy()))
    assert not calm.verdict().drifted
    assert shifted.verdict().drifted
    assert shifted.verdict().measure == "novelty"
    stored = json.loads(session.metadata["bensemble.novelty"])
    assert stored["num_data"] == 400


def refused(error, message, *args, **options):
    with pytest.raises(error, match=message):
        export_onnx(*args, outputs="uncertainty", likelihood="categorical", **options)


def test_what_has_no_closed_form_is_refused(familiar, tmp_path):
    net, train, heldout, x = familiar
    path = tmp_path / "a.onnx"
    refused(InvalidValueError, "needs a model whose last layer alone", sampled(net), path, x[:1], method="closed")
    refused(InvalidValueError, "method must be 'closed', 'samples' or None", of(net), path, x[:1], method="exact")
    novelty = fit_novelty(net, train, heldout)
    refused(InvalidValueError, "belongs to another model", of(Dense(2)), path, x[:1], novelty=novelty)
    refused(InvalidTypeError, "must come from fit_novelty", of(net), path, x[:1], novelty="yes")
    refused(InvalidValueError, "one for each of the 2 models", [of(net), of(net)], path, x[:1], novelty=novelty)
    with pytest.raises(InvalidValueError, match="novelty must come with outputs='uncertainty'"):
        export_onnx(of(net), path, x[:1], novelty=novelty)
    assert not path.exists()
