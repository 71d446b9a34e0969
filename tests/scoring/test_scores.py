"""What weights are worth: by definition on networks small enough to compute it in another way."""

import copy
import math

import pytest
import torch
from torch import distributions, nn
from torch.testing import assert_close

import bensemble
from bensemble.errors import InvalidTypeError, InvalidValueError
from bensemble.likelihoods import Bernoulli, Categorical, Gaussian
from convert import bayesify, prune_scores, to_deterministic
from convert.scoring.loss import HeldOut, in_last_tenth

BATCHES = [torch.randn(32, 6, generator=torch.Generator().manual_seed(i)) for i in range(10)]


def network():
    return nn.Sequential(nn.Linear(6, 12), nn.Tanh(), nn.Linear(12, 4)).eval()


def exact_curvature(model, x):
    """The diagonal of the mean GGN, example by example."""
    weights = {name: p for name, p in model.named_parameters() if p.ndim > 1}
    found = {name: torch.zeros_like(p) for name, p in weights.items()}
    for row in x:
        logits = model(row[None])[0]
        probs = logits.softmax(-1).detach()
        fisher = torch.diag(probs) - torch.outer(probs, probs)
        slopes = [torch.autograd.grad(logits[c], list(weights.values()), retain_graph=True) for c in range(4)]
        for index, name in enumerate(found):
            jacobian = torch.stack([slope[index].flatten() for slope in slopes])
            found[name] += torch.einsum("ci,cd,di->i", jacobian, fisher, jacobian).view_as(found[name]) / len(x)
    return found


def test_obd_is_the_damped_curvature_times_the_square():
    model = network()
    before = copy.deepcopy(model.state_dict())
    scores = prune_scores(model, BATCHES, damping=0.5)
    curvature = exact_curvature(model, torch.cat(BATCHES[:9]))  # the last tenth is held out
    mean = torch.cat([h.flatten() for h in curvature.values()]).mean()
    assert list(scores) == ["0.weight", "2.weight"]
    for name, score in scores.items():
        expected = model.get_parameter(name).detach().square() * (curvature[name] / mean + 0.5)
        assert float((score - expected).norm() / expected.norm()) < 5 * math.sqrt(2 / 288)  # of one vector each
    assert all(torch.equal(before[name], tensor) for name, tensor in model.state_dict().items())
    again = prune_scores(bayesify(model), BATCHES, damping=0.5)
    assert all(torch.equal(again[name], score) for name, score in scores.items())


def test_magnitudes_need_no_loader_and_no_posterior():
    model = network()
    scores = prune_scores(model, score="magnitude")
    assert all(torch.equal(score, model.get_parameter(name).abs()) for name, score in scores.items())
    bnn = bayesify(model)
    bensemble.prune(bnn, sparsity=0.5)
    masked = prune_scores(bnn, score="magnitude")["0.weight"]
    assert torch.equal(masked, to_deterministic(bnn)[0].weight.abs())


def test_snr_and_evidence_are_those_of_the_posterior():
    bnn = bayesify(network())
    posteriors = {name: p for name, p in bensemble.named_posteriors(bnn) if p.mu.ndim > 1}
    with torch.no_grad():
        for p in posteriors.values():
            p.rho.add_(torch.rand_like(p.rho))
    scores, evidence = prune_scores(bnn, score="snr"), prune_scores(bnn, score="evidence")
    mu, sigma = (
        torch.cat([f(p).flatten() for p in posteriors.values()]).detach() for f in (lambda p: p.mu, lambda p: p.sigma())
    )
    width = (mu.square() + sigma.square()).mean().sqrt()
    zero = torch.zeros(())
    expected = torch.distributions.Normal(zero, width).log_prob(zero) - torch.distributions.Normal(mu, sigma).log_prob(
        zero
    )
    assert_close(torch.cat([score.flatten() for score in evidence.values()]), expected)
    assert all(torch.equal(score, posteriors[name].snr()) for name, score in scores.items())
    masks = bensemble.pruning_masks(bnn, threshold=0.0, scores=evidence)
    assert 0 < sum(float(mask.sum()) for mask in masks.values()) < len(mu)


def test_the_damping_is_chosen_and_magnitude_is_among_the_choices():
    model = network()
    with torch.no_grad():
        model[0].weight[:, 0] = 30.0  # large, and of an input that never comes: only the curvature knows
    batches = [torch.cat([torch.zeros(32, 1), x[:, 1:]], 1) for x in BATCHES]
    chosen = prune_scores(model, batches, sparsity=0.25)
    magnitude = prune_scores(model, score="magnitude")
    heldout = HeldOut("prune_scores", model, Categorical())
    heldout.add(batches[-1])
    bnn = bayesify(model)
    losses = [
        heldout.loss(to_deterministic(bnn, sparsity=0.25, scores=scores)).ranked for scores in (chosen, magnitude)
    ]
    assert losses[0] < losses[1]
    unhelpful = [torch.zeros(8, 6)] * 3  # no curvature in the first layer, and zeros change nothing
    assert prune_scores(model, unhelpful)["0.weight"].isfinite().all()


PREDICTIONS = [
    (Categorical(), lambda raw: distributions.Categorical(logits=raw)),
    (Bernoulli(), lambda raw: distributions.Bernoulli(logits=raw)),
    (Gaussian(0.3), lambda raw: distributions.Normal(raw, 0.3)),
]


@pytest.mark.parametrize(("likelihood", "prediction"), PREDICTIONS)
def test_the_loss_is_the_divergence_of_the_predictions(likelihood, prediction):
    model, other = network(), network()
    heldout = HeldOut("prune_scores", model, likelihood)
    for x in BATCHES[:2]:
        heldout.add(x)
    same, loss = heldout.loss(model), heldout.loss(other)
    with torch.no_grad():
        x = torch.cat(BATCHES[:2])
        terms = distributions.kl_divergence(prediction(model(x)), prediction(other(x))).flatten()
    assert_close(loss.nats, float(terms.double().mean()), rtol=1e-4, atol=0)
    assert same.nats == pytest.approx(0, abs=1e-6)
    assert loss.num_terms == len(terms)
    if isinstance(likelihood, Categorical):
        with torch.no_grad():
            probs = model(x).softmax(-1)
            lost = probs.amax(-1) - probs.gather(-1, other(x).argmax(-1, keepdim=True))[:, 0]
        assert_close(loss.drop, float(lost.double().mean()))
        assert_close(loss.standard_error, float(lost.double().std() / len(lost) ** 0.5))
        assert same.drop == 0


def test_a_network_without_finite_answers_has_lost_everything():
    model = network()
    heldout = HeldOut("prune_scores", model, Categorical())
    heldout.add(BATCHES[0])
    broken = copy.deepcopy(model)
    broken[0].weight.data[:] = math.nan
    assert heldout.loss(broken).nats == math.inf


def test_the_last_tenth_is_held_out():
    assert [i for i in range(25) if in_last_tenth(i, 25)] == [23, 24]
    assert [i for i in range(25) if in_last_tenth(i, None)] == [9, 19]
    assert in_last_tenth(0, 1)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"score": "wanda"}, InvalidValueError, "score must be one of obd, magnitude, snr, evidence, got 'wanda'"),
        ({"score": "snr"}, InvalidValueError, "score='snr' needs a posterior, got a plain Sequential"),
        ({"loader": None}, InvalidValueError, "score='obd' needs loader, got none"),
        ({"loader": BATCHES[0]}, InvalidTypeError, "loader must give batches, got Tensor"),
        ({"loader": []}, InvalidValueError, "prune_scores: loader must give at least one batch"),
        ({"damping": -1}, InvalidValueError, "damping must be finite and at least 0, got -1"),
        ({"sparsity": 1}, InvalidValueError, "sparsity must be finite and at least 0 and below 1, got 1"),
        ({"likelihood": None}, InvalidValueError, "likelihood must say what the outputs mean"),
    ],
)
def test_refusals(arguments, error, message):
    with pytest.raises(error, match=message):
        prune_scores(network(), **({"loader": BATCHES} | arguments))


class Reusing(nn.Linear):
    """Gives its outputs in a buffer of its own, the same for every batch."""

    def __init__(self):
        super().__init__(4, 3)
        self.register_buffer("out", torch.zeros(2, 3))

    def forward(self, x):
        return self.out.copy_(super().forward(x))


def test_what_is_held_out_is_apart_from_the_buffers_of_the_model():
    model = Reusing()
    heldout = HeldOut("prune_and_repair", model, Categorical())
    for _ in range(3):
        heldout.add(torch.randn(2, 4))
    assert heldout.loss(copy.deepcopy(model)).nats == 0
    assert not model.out.any()
