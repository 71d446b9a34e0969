import warnings

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import bensemble
from bensemble import predict
from bensemble.errors import InvalidTypeError, InvalidValueError
from bensemble.likelihoods import Categorical, Gaussian
from convert import bayesify

from .tasks import batches, blobs, mlp

TRAIN, HELD, NEW = blobs(200, seed=1), blobs(150, seed=2), blobs(40, seed=3)[0]


def fitted(model, held=HELD):
    return bensemble.fit_novelty(model, batches(TRAIN), batches(held))


@pytest.fixture
def pair():
    model = mlp()
    return model, fitted(model)


@pytest.mark.filterwarnings("ignore:predict. the posterior is neither trained nor fitted")
@pytest.mark.parametrize("likelihood", [None, "categorical"])
def test_a_prediction_has_the_novelty_of_its_inputs(pair, likelihood):
    model, novelty = pair
    for network in (model, bayesify(model, init_sigma=0.1)):
        p = predict(network, NEW, 3, likelihood=likelihood, novelty=novelty)
        assert_close(p.novelty, novelty.score(NEW), rtol=1e-9, atol=1e-9)
        assert_close(p.novelty_pvalue, novelty.pvalue(p.novelty))
        assert p.smallest_pvalue == 1 / 151
        for other in (predict(network, NEW, 3, novelty=novelty, chunk_size=7),
                      predict(network, batches((NEW, NEW[:, 0]), 9), 3, novelty=novelty)):  # fmt: skip
            assert_close(other.novelty, p.novelty, rtol=1e-9, atol=1e-9)
        assert "novelty_pvalue" in repr(p)
    without = predict(model, NEW, likelihood=likelihood)
    assert without.novelty is without.novelty_pvalue is None
    assert "novelty" not in repr(without)


@pytest.mark.parametrize("count", [1, 2])
def test_in_closed_form_one_forward_gives_both(count):
    models = [bayesify(mlp(), include="4", example_inputs=NEW) for _ in range(count)]
    novelties = [fitted(model) for model in models]
    for model in models:
        bensemble.fit_posterior(model, batches(TRAIN), likelihood="categorical")
    scores = torch.stack([novelty.score(NEW) for novelty in novelties]).mean(0)
    calls = []
    for model in models:
        model[0].register_forward_hook(lambda *_: calls.append(1))
    p = predict(models, NEW, likelihood="categorical", novelty=novelties)
    assert p.method == "closed"
    assert len(calls) == count
    assert_close(p.novelty, scores, rtol=1e-9, atol=1e-9)


def test_outputs_that_are_not_finite_are_named_before_their_novelty():
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3)).double()
    model = bayesify(model, include="2", example_inputs=NEW)
    novelty = fitted(model)
    bensemble.fit_posterior(model, batches(TRAIN), likelihood="categorical")
    for given in (None, novelty):
        with pytest.raises(InvalidValueError, match=r"predict: outputs must be finite, got .* in batch 0"):
            predict(model, NEW.sign() * 1.7e308, likelihood="categorical", novelty=given)


def test_a_fit_to_another_output_runs_the_network_again(pair):
    class Two(nn.Module):
        def __init__(self, inner):
            super().__init__()
            self.inner = inner

        def forward(self, x):
            return {"logits": self.inner(x), "flipped": -self.inner(x)}

    model = bayesify(Two(mlp()), include="inner.4", example_inputs=NEW)
    novelty = bensemble.fit_novelty(model, batches(TRAIN), batches(HELD), output="logits")
    bensemble.fit_posterior(model, batches(TRAIN), likelihood="categorical", output="flipped")
    p = predict(model, NEW, likelihood="categorical", output="flipped", novelty=novelty)
    assert_close(p.novelty, novelty.score(NEW), rtol=1e-9, atol=1e-9)


def test_rejecting_strangers(pair):
    model, novelty = pair
    p = predict(model, torch.cat([NEW, 9 * NEW[:3]]), likelihood="categorical", novelty=novelty)
    level = float(p.novelty_pvalue.sort().values[5])
    assert torch.equal(p.reject(by="novelty", level=level), p.novelty_pvalue <= level)
    assert int(p.reject(by="novelty", level=level).sum()) >= 6
    assert bool(p.reject(by="novelty", level=0.01)[-3:].all())
    assert torch.equal(p.reject(by="novelty", threshold=1.0), p.novelty > 1)
    strangest = p.reject(by="novelty", share=0.1).nonzero().flatten()
    assert set(strangest.tolist()) == set(p.novelty.topk(4).indices.tolist())
    tempered = bensemble.calibrate(p, torch.randint(0, 3, (43,)), temperature=2.0).apply(p)
    assert torch.equal(tempered.reject(by="novelty", level=level), p.reject(by="novelty", level=level))


def test_a_level_below_the_smallest_pvalue_warns(pair):
    model, novelty = pair
    p = predict(model, 9 * NEW, likelihood="categorical", novelty=novelty)
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        p.reject(by="novelty", level=1 / 151)
    with pytest.warns(UserWarning, match=r"no p-value is below 0\.0066 = .* nothing is rejected at level 0\.006;"):
        assert not p.reject(by="novelty", level=0.006).any()


def test_regressions_reject_too():
    model = mlp(outputs=1)
    novelty = bensemble.fit_novelty(
        model, batches((TRAIN[0], TRAIN[0][:, :1])), batches((HELD[0], HELD[0][:, :1])), likelihood=Gaussian(1.0)
    )
    p = predict(model, NEW, likelihood=Gaussian(1.0), novelty=novelty)
    assert torch.equal(p.reject(by="novelty", level=0.1), p.novelty_pvalue <= 0.1)
    assert torch.equal(p.reject(threshold=0.5), p.total_std > 0.5)
    with pytest.raises(InvalidValueError, match="by must be one of total_std, epistemic_std, noise_std, novelty"):
        p.reject(share=0.1, by="entropy")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"by": "novelty", "level": 0.1}, r"the prediction has no novelty; call predict with novelty="),
        ({"level": 0.1}, "level needs a p-value, which entropy has not, got level=0.1; use by='novelty'"),
        ({"level": 0.1, "share": 0.1, "by": "novelty"}, "exactly one of share and threshold"),
        ({"level": 0.0}, "level must be finite and above 0"),
    ],
)
def test_reject_refuses(arguments, message):
    with pytest.raises(InvalidValueError, match=f"reject: {message}"):
        predict(mlp(), NEW, likelihood="categorical").reject(**arguments)


def test_an_ensemble_takes_the_mean_of_its_members_scores():
    models = [mlp() for _ in range(3)]
    novelties = [fitted(model) for model in models]
    p = predict(models, NEW, likelihood="categorical", novelty=novelties)
    assert_close(p.novelty, torch.stack([n.score(NEW) for n in novelties]).mean(0))
    held = torch.stack([n.score(HELD[0]) for n in novelties]).mean(0)
    counted = torch.tensor([(1 + int((held >= s).sum())) / 151 for s in p.novelty], dtype=torch.float64)
    assert_close(p.novelty_pvalue, counted)
    assert p.smallest_pvalue == 1 / 151
    with pytest.raises(InvalidValueError, match="novelty: it belongs to another model"):
        predict(models, NEW, novelty=novelties[::-1])
    shuffled = [novelties[0], novelties[1], fitted(models[2], [tensor.flip(0) for tensor in HELD])]
    with pytest.raises(InvalidValueError, match="must have the same held-out data in one order, got 150, 150, 150"):
        predict(models, NEW, novelty=shuffled)


def test_a_novelty_that_does_not_fit_is_refused_before_anything_runs(pair):
    model, novelty = pair
    calls = []
    model.register_forward_hook(lambda *_: calls.append(1))
    other = mlp()
    other.register_forward_hook(lambda *_: calls.append(1))
    with pytest.raises(InvalidValueError, match="belongs to another model"):
        predict(other, NEW, novelty=novelty)
    with pytest.raises(InvalidValueError, match="novelty must be one for each of the 2 models, got 1; fit one"):
        predict([model, model], NEW, novelty=novelty)
    with pytest.raises(InvalidTypeError, match="novelty must come from fit_novelty, one for each model, got float"):
        predict(model, NEW, novelty=3.0)
    assert calls == []


def test_pixels_have_novelties_in_the_shape_of_the_entropy():
    model = nn.Sequential(nn.Conv2d(1, 4, 3, padding=1), nn.ReLU(), nn.Conv2d(4, 3, 1))
    x, y = torch.randn(20, 1, 5, 6), torch.randint(0, 3, (20, 5, 6))
    likelihood = Categorical(dim=1)
    novelty = bensemble.fit_novelty(model, [(x, y)], [(x[:9], y[:9])], likelihood=likelihood)
    p = predict(model, [(x[:4], y[:4]), (x[4:7], y[4:7])], likelihood=likelihood, novelty=novelty)
    assert p.novelty.shape == p.novelty_pvalue.shape == p.entropy.shape == (7, 5, 6)
    assert p.reject(by="novelty", level=0.05).shape == (7, 5, 6)
