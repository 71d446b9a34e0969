import copy
import math
from collections import UserDict

import pytest
import torch
from torch import nn
from torch.distributions import Categorical as TorchCategorical
from torch.testing import assert_close
from torch.utils.data import DataLoader, TensorDataset

import bensemble.prediction.weight_samples
from bensemble import sampling
from bensemble.errors import InvalidTypeError, InvalidValueError, OutOfMemoryError
from bensemble.gaussian import rho_from_sigma, sigma_from_rho
from bensemble.likelihoods import Categorical, Gaussian, GaussianHead
from bensemble.posteriors import named_posteriors
from bensemble.prediction.monte_carlo import ClassPrediction, Prediction, RegressionPrediction, predict
from convert import bayesify

X = torch.randn(7, 1, 6, 6)


def cnn(classes=3):
    return nn.Sequential(
        nn.Conv2d(1, 4, 3),
        nn.BatchNorm2d(4),
        nn.ReLU(),
        nn.AdaptiveAvgPool2d(1),
        nn.Flatten(),
        nn.Dropout(0.5),
        nn.Linear(4, classes),
    )


def bayesian(model, sigma=0.3):
    """A Bayesian copy whose sigmas differ from weight to weight, as after a fit."""
    bnn = bayesify(model)
    with torch.no_grad():
        for _, posterior in named_posteriors(bnn):
            posterior.rho.copy_(rho_from_sigma(sigma * (0.5 + torch.rand(posterior.rho.shape))))
    return bnn


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


def perturbed(plain, bnn, generator):
    """A plain copy with every weight replaced by mu + sigma * eps."""
    copied, weights = copy.deepcopy(plain), dict(named_posteriors(bnn))
    with torch.no_grad():
        for name, posterior in weights.items():
            noise = torch.randn(posterior.mu.shape, generator=generator)
            copied.get_parameter(name).copy_(posterior.mu + sigma_from_rho(posterior.rho) * noise)
    return copied.eval()


class Residual(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = (
            nn.Conv2d(1, 3, 3, padding=1),
            nn.Conv2d(3, 3, 3, padding=1),
            nn.Linear(3, 2),
        )

    def forward(self, x):
        x = self.first(x)
        return self.head((x + self.second(x.relu())).mean((2, 3)))


PLAIN = {
    "mlp": lambda: nn.Sequential(nn.Flatten(), nn.Linear(36, 8), nn.Tanh(), nn.Linear(8, 3)),
    "pooled": cnn,
    "residual": Residual,
    "per pixel": lambda: nn.Sequential(nn.Conv2d(1, 3, 3, padding=1), nn.ReLU(), nn.ConvTranspose2d(3, 2, 2, stride=2)),
}


@pytest.mark.parametrize("name", PLAIN)
def test_samples_are_those_of_plain_copies_with_perturbed_weights(name):
    plain = PLAIN[name]()
    bnn = bayesian(plain)
    generator = seeded()
    with torch.no_grad():
        expected = torch.stack([perturbed(plain, bnn, generator)(X) for _ in range(20)])
    prediction = predict(bnn, X, 20, generator=seeded())
    assert_close(prediction.samples, expected)
    assert_close(prediction.mean, expected.mean(0))
    assert_close(prediction.std, expected.std(0))
    assert_close(prediction.mcse, expected.std(0) / math.sqrt(20))


def test_samples_are_those_of_sampling():
    bnn = bayesian(cnn()).eval()
    generator, expected = seeded(), []
    for _ in range(3):
        with torch.no_grad(), sampling(bnn, generator):
            expected.append(bnn(X))
    assert_close(predict(bnn, X, 3, generator=seeded()).samples, torch.stack(expected), rtol=0, atol=0)


@pytest.mark.parametrize("held", [0, 2**30])
def test_a_loader_sees_the_same_functions_as_one_batch(held, monkeypatch):
    monkeypatch.setattr(bensemble.prediction.weight_samples, "HELD_BYTES", held)
    bnn = bayesian(cnn())
    whole = predict(bnn, X, 5, likelihood="categorical", generator=seeded())
    loader = DataLoader(TensorDataset(X, torch.zeros(7)), batch_size=3)
    generator = seeded()
    parts = predict(bnn, loader, 5, likelihood="categorical", generator=generator)
    chunks = predict(bnn, X, 5, likelihood="categorical", generator=seeded(), chunk_size=2)
    once = predict(bnn, iter(loader), 5, likelihood="categorical", generator=seeded(), keep_samples=True, chunk_size=2)
    assert parts.samples is None
    for other in (parts, chunks, once):
        assert_close(other.mean, whole.mean)
        assert_close(other.std, whole.std)
        assert_close(other.expected_entropy, whole.expected_entropy)
    for other in (chunks, once):
        assert_close(other.samples, whole.samples)
    after = seeded()
    predict(bnn, X, 5, generator=after)
    assert torch.equal(generator.get_state(), after.get_state())


def test_keeping_samples_changes_nothing_else():
    bnn = bayesian(cnn())
    kept = predict(bnn, X, 6, generator=seeded())
    running = predict(bnn, X, 6, generator=seeded(), keep_samples=False)
    assert running.samples is None
    assert_close(running.mean, kept.mean, rtol=0, atol=0)
    assert_close(kept.mean, kept.samples.mean(0))
    assert_close(kept.std, kept.samples.std(0))


def test_running_moments_keep_small_deviations_on_large_means():
    bnn = bayesian(nn.Sequential(nn.Flatten(), nn.Linear(36, 2)), 0.01)
    offset = nn.Sequential(bnn, nn.Identity())
    offset[1].register_forward_hook(lambda module, args, out: out + 1e4)
    expected = predict(bnn, X, 30, generator=seeded()).std
    assert_close(predict(offset, X, 30, generator=seeded()).std, expected, rtol=0.05, atol=1e-3)


def test_entropies_follow_their_definitions():
    bnn = bayesian(cnn(), 1.0)
    prediction = predict(bnn, X, 50, likelihood="categorical", generator=seeded())
    probs = predict(bnn, X, 50, generator=seeded()).samples.softmax(-1)
    assert isinstance(prediction, ClassPrediction)
    assert_close(prediction.samples, probs)
    assert_close(prediction.probs, probs.mean(0))
    assert_close(prediction.entropy, TorchCategorical(probs.mean(0)).entropy())
    assert_close(prediction.expected_entropy, TorchCategorical(probs).entropy().mean(0))
    information = torch.distributions.kl_divergence(TorchCategorical(probs), TorchCategorical(probs.mean(0))).mean(0)
    assert_close(prediction.mutual_information, information, rtol=1e-4, atol=1e-6)
    assert prediction.mutual_information.min() > 0.01


def test_mutual_information_is_not_negative_where_rounding_would_make_it_so():
    bnn = bayesian(nn.Sequential(nn.Flatten(), nn.Linear(36, 10)), 1e-6)
    prediction = predict(bnn, torch.randn(500, 36), 7, likelihood="categorical", generator=seeded())
    assert (prediction.entropy < prediction.expected_entropy).any()
    assert (prediction.mutual_information >= 0).all()


def test_bernoulli_predictions_are_per_element():
    bnn = bayesian(cnn(2), 1.0)
    prediction = predict(bnn, X, 50, likelihood="bernoulli", generator=seeded())
    probs = predict(bnn, X, 50, generator=seeded()).samples.sigmoid()
    assert_close(prediction.probs, probs.mean(0))
    reference = torch.distributions.Bernoulli(probs)
    assert_close(prediction.expected_entropy, reference.entropy().mean(0))
    assert_close(prediction.entropy, torch.distributions.Bernoulli(probs.mean(0)).entropy())


def test_class_maps_have_entropies_per_pixel():
    bnn = bayesian(PLAIN["per pixel"]())
    prediction = predict(bnn, X, 4, likelihood=Categorical(dim=1), generator=seeded())
    assert prediction.probs.shape == (7, 2, 12, 12)
    assert prediction.entropy.shape == prediction.mutual_information.shape == (7, 12, 12)
    assert_close(prediction.probs.sum(1), torch.ones(7, 12, 12))


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


def test_a_deterministic_model_needs_one_pass():
    plain, calls = cnn(), []
    prediction = predict(plain, X, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(1, 1)]
    assert prediction.num_samples == 1
    assert_close(prediction.mean, plain.eval()(X).detach())
    assert prediction.std.abs().max() == prediction.mcse.abs().max() == 0
    assert_close(prediction.quantile(0.3), prediction.mean)


def test_one_sample_of_a_posterior_has_no_deviation():
    assert predict(bayesian(cnn()), X, 1).std.isnan().all()


def test_an_ensemble_of_plain_models():
    members = [cnn().eval() for _ in range(3)]
    prediction = predict(members, X, likelihood="categorical")
    probs = torch.stack([member(X) for member in members]).softmax(-1).detach()
    assert prediction.num_samples == 3
    assert_close(prediction.samples, probs)
    assert_close(prediction.std, probs.std(0))
    assert_close(predict(nn.ModuleList(members), X, likelihood="categorical").mean, probs.mean(0))


def test_an_ensemble_of_bayesian_models_weighs_them_alike():
    members = [bayesian(cnn()), bayesian(cnn())]
    both = predict(members, X, 4, generator=seeded())
    generator = seeded()
    alone = [predict(member, X, 4, generator=generator) for member in members]
    assert both.num_samples == 8
    assert_close(both.mean, (alone[0].mean + alone[1].mean) / 2)
    assert_close(both.samples, torch.cat([alone[0].samples, alone[1].samples]))


def test_global_randomness_is_kept_when_a_generator_is_given():
    bnn = bayesian(cnn())
    loader = DataLoader(TensorDataset(X), batch_size=3, shuffle=True)
    before = torch.get_rng_state()
    predict(bnn, X, 2, generator=seeded())
    predict(bnn, loader, 2, generator=seeded())
    assert torch.equal(torch.get_rng_state(), before)
    predict(bnn, X, 2)
    assert not torch.equal(torch.get_rng_state(), before)
    predict(cnn().eval(), X)


def test_without_a_generator_the_global_seed_decides():
    bnn = bayesian(cnn())
    torch.manual_seed(3)
    first, second = predict(bnn, X, 2), predict(bnn, X, 2)
    torch.manual_seed(3)
    assert_close(predict(bnn, X, 2).samples, first.samples, rtol=0, atol=0)
    assert (first.samples - second.samples).abs().max() > 0


def test_every_training_flag_comes_back():
    bnn = bayesian(cnn()).train()
    bnn[1].eval()
    flags = [module.training for module in bnn.modules()]
    statistics = bnn[1].running_mean.clone()
    first = predict(bnn, X, 2, generator=seeded())
    assert [module.training for module in bnn.modules()] == flags
    assert_close(first.samples, predict(bnn.eval(), X, 2, generator=seeded()).samples)
    bnn.train()
    flags = [module.training for module in bnn.modules()]
    with pytest.raises(RuntimeError):
        predict(bnn, X[:, :, :2], 2)
    assert [module.training for module in bnn.modules()] == flags
    assert torch.equal(bnn[1].running_mean, statistics)
    assert all(parameter.grad is None for parameter in bnn.parameters())


class Dictionary(nn.Module):
    """Inputs by name and a structured output, as in Hugging Face models."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(4, 3)

    def forward(self, values, mask=None, labels=None):
        assert labels is None
        hidden = self.body(values if mask is None else values * mask)
        return {"logits": hidden, "hidden": hidden + 1}


def test_mappings_in_and_out():
    bnn = bayesian(Dictionary())
    values, mask = torch.randn(5, 4), torch.ones(5, 1)
    direct = predict(bnn, {"values": values, "mask": mask}, 3, likelihood="categorical", generator=seeded())
    loader = [UserDict(values=values[i : i + 2], mask=mask[i : i + 2], labels=torch.zeros(1)) for i in (0, 2, 4)]
    read = predict(bnn, loader, 3, likelihood="categorical", generator=seeded())
    assert_close(direct.mean, read.mean)
    assert_close(predict(bnn, (values, mask), 3, likelihood="categorical", generator=seeded()).mean, direct.mean)
    hidden = predict(bnn, (values,), 3, output="hidden", generator=seeded())
    assert_close(hidden.mean, predict(bnn, values, 3, output="logits", generator=seeded()).mean + 1)
    unpacked = predict(bnn, [(0, values)], 3, unpack=lambda b: (b[1], b[0]), generator=seeded())
    assert_close(unpacked.mean + 1, hidden.mean)


def test_progress_counts_forwards():
    bnn, calls = bayesian(cnn()), []
    loader = DataLoader(TensorDataset(X), batch_size=3)
    predict(bnn, loader, 2, progress=lambda done, total: calls.append((done, total)))
    assert calls == [(i + 1, 6) for i in range(6)]
    calls.clear()
    predict(bnn, iter(list(loader)), 2, progress=lambda done, total: calls.append((done, total)))
    assert calls[-1] == (6, None)
    calls.clear()
    predict(bnn, X, 2, chunk_size=2, progress=lambda done, total: calls.append((done, total)))
    assert calls[-1] == (8, 8)


def test_half_precision_outputs_become_float32():
    bnn = bayesian(nn.Sequential(nn.Flatten(), nn.Linear(36, 3))).bfloat16()
    prediction = predict(bnn, X.bfloat16(), 4, likelihood="categorical")
    assert prediction.probs.dtype == prediction.std.dtype == prediction.entropy.dtype == torch.float32
    assert predict(bayesian(cnn()).double(), X.double(), 2).mean.dtype == torch.float64


def test_rejecting_hands_on_the_most_uncertain():
    prediction = predict(bayesian(cnn(), 1.0), X, 20, likelihood="categorical")
    order = prediction.entropy.argsort(descending=True)
    for share, count in [(0.0, 0), (0.3, 2), (1.0, 7)]:
        rejected = prediction.reject(share=share)
        assert set(rejected.nonzero().flatten().tolist()) == set(order[:count].tolist())
    limit = float(prediction.mutual_information.median())
    assert torch.equal(
        prediction.reject(threshold=limit, by="mutual_information"), prediction.mutual_information > limit
    )


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "exactly one of share and threshold"),
        ({"share": 0.1, "threshold": 0.1}, "exactly one of share and threshold"),
        ({"share": 1.1}, r"share must be finite and at least 0 and at most 1, got 1\.1"),
        ({"threshold": math.nan}, "threshold must be finite, got nan"),
        ({"share": 0.1, "by": "std"}, "by must be one of entropy, .*, got 'std'"),
    ],
)
def test_reject_refuses(arguments, message):
    with pytest.raises(InvalidValueError, match=f"reject: {message}"):
        predict(cnn(), X, likelihood="categorical").reject(**arguments)


def test_predictions_are_frozen_print_and_explain_what_they_lack():
    raw = predict(cnn(), X)
    assert type(raw) is Prediction
    with pytest.raises(AttributeError, match=r"has no 'probs'.*likelihood=None; pass likelihood='categorical'"):
        _ = raw.probs
    with pytest.raises(AttributeError, match=r"has no 'total_std'.*pass likelihood='gaussian_head'"):
        _ = predict(cnn(), X, likelihood="categorical").total_std
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = raw.nonsense
    with pytest.raises(AttributeError):
        raw.mean = X
    assert "Prediction: 7 examples, 1 samples (deterministic, kept)" in repr(raw)
    assert "mutual_information" in repr(predict(cnn(), X, likelihood="categorical"))
    assert "total_std" in repr(predict(cnn(4), X, likelihood="gaussian_head", keep_samples=False))
    assert_close(copy.deepcopy(raw).mean, raw.mean)


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


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"model": "net"}, InvalidTypeError, "model must be a torch.nn.Module or a sequence of them, got str"),
        ({"model": []}, InvalidTypeError, "model must be a torch.nn.Module or a sequence of them, got a list of 0"),
        ({"model": [nn.Flatten(), 3]}, InvalidTypeError, "model must be a torch.nn.Module, got int"),
        ({"inputs": 3}, InvalidTypeError, "inputs: must be a tensor"),
        ({"inputs": []}, InvalidValueError, "at least one batch, got a loader without any"),
        ({"num_samples": 0}, InvalidValueError, "num_samples must be at least 1, got 0"),
        ({"num_samples": 2.0}, InvalidTypeError, r"num_samples must be a whole number, got 2\.0"),
        ({"chunk_size": 0}, InvalidValueError, "chunk_size must be at least 1, got 0"),
        ({"generator": 3}, InvalidTypeError, "generator must be a torch.Generator, got 3"),
        ({"likelihood": "poisson"}, InvalidValueError, "likelihood: must be one of"),
        ({"output": "logits"}, InvalidValueError, "'logits' selects nothing"),
        ({"model": nn.Threshold(9.0, math.nan)}, InvalidValueError, "got 6 of 6 values that are not, in batch 0"),
        (
            {"model": nn.Sequential(nn.Flatten(), nn.Linear(3, 9), nn.Softmax(-1)), "likelihood": "categorical"},
            InvalidValueError,
            "Categorical: outputs must be logits",
        ),
        (
            {"inputs": [torch.zeros(2, 3), torch.zeros(2, 4)]},
            InvalidValueError,
            r"outputs of a batch must have the shape \(3,\) of the first, got \(4,\)",
        ),
        (
            {"model": [nn.Flatten(), nn.Linear(3, 1)]},
            InvalidValueError,
            r"outputs of a sample must have the shape \(2, 3\) of the first, got \(2, 1\)",
        ),
    ],
)
def test_predict_refuses(arguments, error, message):
    with pytest.raises(error, match=message):
        predict(**{"model": nn.Flatten(), "inputs": torch.randn(2, 3)} | arguments)


def test_a_mixed_ensemble_is_refused():
    with pytest.raises(InvalidValueError, match="predict: an ensemble must be all Bayesian or all deterministic"):
        predict([cnn(), bayesian(cnn())], X)


def test_an_untouched_posterior_warns_once_per_model():
    bnn = bayesify(cnn())
    with pytest.warns(UserWarning, match=r"neither trained nor fitted.*call bensemble\.fit_posterior") as caught:
        predict(bnn, X, 2)
    assert caught[0].filename == __file__
    predict(bnn, X, 2)
    with pytest.warns(UserWarning, match="neither trained nor fitted"):
        predict(bayesify(cnn()), X, 2)
    trained = bayesify(cnn()).train()
    optimizer = torch.optim.SGD(trained.parameters(), lr=1e-3)
    trained(X).square().mean().backward()
    optimizer.step()
    predict(trained, X, 2)


def test_a_forward_that_does_not_fit_says_so():
    class Large(nn.Module):
        def forward(self, x):
            return torch.empty(len(x), 2**50)

    with pytest.raises(
        OutOfMemoryError, match="predict: 7 examples in one forward do not fit into memory; pass chunk_s"
    ):
        predict(Large(), X)


# -- inputs that are not finite


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("form", ["tensor", "tuple", "mapping", "list in a tuple", "packed", "loader"])
def test_inputs_that_are_not_finite_are_refused_even_where_the_outputs_are(value, form):
    class Bounded(nn.Module):
        """Answers anything with numbers."""

        def __init__(self):
            super().__init__()
            self.weight = nn.Parameter(torch.ones(3, 4))

        def forward(self, x):
            x = x[0] if isinstance(x, list) else getattr(x, "data", x)
            return torch.nan_to_num(x).clamp(-1, 1) @ self.weight.T

    x = torch.rand(5, 4)
    x[3, 2] = value
    inputs = {
        "tensor": x,
        "tuple": (x,),
        "mapping": {"x": x},
        "list in a tuple": ([x],),
        "packed": nn.utils.rnn.pack_sequence(list(x[:, None])),
        "loader": [(x.nan_to_num(0, 0, 0), None), (x, None)],
    }[form]
    if form == "loader":
        expected = rf"predict: inputs must be finite, got {value} at \[3, 2\] of a .* in batch 1, one of 1"
    else:
        expected = rf"predict: inputs must be finite, got {value} at \[3, 2\] of a tensor of shape \(5, 4\)"
    with pytest.raises(InvalidValueError, match=expected):
        predict(Bounded(), inputs, likelihood="categorical")


def test_the_infinities_of_an_additive_mask_are_no_fault():
    class Masked(nn.Module):
        def __init__(self):
            super().__init__()
            self.linear = nn.Linear(4, 3)

        def forward(self, x, mask):
            return self.linear(x) + mask

    mask = torch.tensor([[0.0, -math.inf, 0.0]]).expand(5, 3)
    assert bool((predict(Masked(), (torch.randn(5, 4), mask), likelihood="categorical").probs[:, 1] == 0).all())


def test_noise_that_overflows_is_refused():
    head = nn.Linear(4, 2)
    nn.init.constant_(head.bias, 200.0)
    with pytest.raises(InvalidValueError, match="the noise that the outputs hold must be finite, got 5 of 5 values"):
        predict(head, torch.randn(5, 4), likelihood="gaussian_head")
