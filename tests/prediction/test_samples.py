"""Weight samples: one function for all examples, whose randomness is its own."""

import copy
import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close
from torch.utils.data import DataLoader, TensorDataset

import bensemble.prediction.weight_samples
from bensemble import sampling
from bensemble.errors import InvalidValueError
from bensemble.gaussian import sigma_from_rho
from bensemble.posteriors import named_posteriors
from bensemble.prediction.monte_carlo import predict

from .networks import PLAIN, X, bayesian, cnn, seeded


def perturbed(plain, bnn, generator):
    """A plain copy with every weight replaced by mu + sigma * eps."""
    copied, weights = copy.deepcopy(plain), dict(named_posteriors(bnn))
    with torch.no_grad():
        for name, posterior in weights.items():
            noise = torch.randn(posterior.mu.shape, generator=generator)
            copied.get_parameter(name).copy_(posterior.mu + sigma_from_rho(posterior.rho) * noise)
    return copied.eval()


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


@pytest.mark.filterwarnings("ignore:predict. the loader shuffles")
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
    with pytest.raises(InvalidValueError, match="Kernel size can't be greater"):
        predict(bnn, X[:, :, :2], 2)
    assert [module.training for module in bnn.modules()] == flags
    assert torch.equal(bnn[1].running_mean, statistics)
    assert all(parameter.grad is None for parameter in bnn.parameters())
