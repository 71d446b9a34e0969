"""Moments of whole networks against weight samples."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import bensemble
from bensemble.errors import ConversionError, InvalidValueError
from convert import bayesify, moments, to_deterministic

from .sampling import sampled


@pytest.fixture(autouse=True)
def _one_thread():
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(before)


def uneven(scale: float):
    """Sigmas that differ from weight to weight."""
    return lambda name, weight: scale * (0.5 + torch.rand(weight.shape))


def convnet() -> nn.Module:
    return nn.Sequential(
        nn.Conv2d(1, 6, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(6, 8, 3), nn.LeakyReLU(), nn.Flatten(),
        nn.Linear(8 * 16, 12), nn.Tanh(), nn.Linear(12, 3),
    )  # fmt: skip


def test_linear_networks_are_exact():
    bnn = bayesify(
        nn.Sequential(nn.Linear(5, 4), nn.Linear(4, 6, bias=False), nn.Linear(6, 3)), init_sigma=uneven(0.3)
    ).eval()
    x = torch.randn(7, 5)
    mean, variance = moments(bnn, x)(x)
    truth = sampled(bnn, x, 6000)
    assert bool(((mean - truth.mean).abs() <= 5 * truth.mean_error).all())
    assert bool(((variance.sqrt() - truth.std).abs() <= 5 * truth.std_error).all())


def test_a_single_convolution_and_its_global_average_are_exact():
    bnn = bayesify(
        nn.Sequential(nn.Conv2d(2, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten()), init_sigma=uneven(0.3)
    ).eval()
    x = torch.randn(5, 2, 9, 9)
    mean, variance = moments(bnn, x)(x)
    truth = sampled(bnn, x, 6000)
    assert bool(((mean - truth.mean).abs() <= 5 * truth.mean_error).all())
    # The mean of what each tap reads is taken as the mean of the whole image, edges weighed.
    torch.testing.assert_close(variance.sqrt(), truth.std.float(), rtol=0.15, atol=0)


def test_without_sigma_it_is_the_deterministic_network():
    model = convnet().eval()
    bnn = bayesify(model, init_sigma=1e-7).eval()
    x = torch.rand(3, 1, 12, 12)
    mean, variance = moments(bnn, x)(x)
    torch.testing.assert_close(mean, model(x), rtol=1e-5, atol=1e-5)
    assert float(variance.sqrt().max()) < 1e-5


def test_a_convolutional_network_agrees_with_weight_samples():
    bnn = bayesify(convnet(), init_sigma=uneven(0.1)).eval()
    x = torch.rand(4, 1, 12, 12)
    mean, variance = moments(bnn, x[:1])(x)
    truth = sampled(bnn, x, 2000)
    torch.testing.assert_close(variance.sqrt(), truth.std.float(), rtol=0.12, atol=0)
    assert float(((mean - truth.mean) / truth.std).abs().max()) < 0.2


def test_predict_takes_it_in_place_of_the_model():
    bnn = bayesify(convnet(), init_sigma=uneven(0.1)).eval()
    x = torch.rand(4, 1, 12, 12)
    found = bensemble.predict(moments(bnn, x), x, likelihood="categorical")
    drawn = bensemble.predict(bnn, x, 1000, likelihood="categorical", generator=torch.Generator().manual_seed(1))
    torch.testing.assert_close(found.probs, drawn.probs, rtol=0, atol=0.02)
    torch.testing.assert_close(found.expected_entropy, drawn.expected_entropy, rtol=0, atol=0.03)
    raw = bensemble.predict(moments(bnn, x), x)
    mean, variance = moments(bnn, x)(x)
    torch.testing.assert_close(raw.mean, mean, rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(raw.std, variance.sqrt(), rtol=1e-4, atol=1e-5)


def test_torch_export_takes_it_with_a_dynamic_batch():
    bnn = bayesify(convnet(), init_sigma=uneven(0.1)).eval()
    x = torch.rand(5, 1, 12, 12)
    module = moments(bnn, x[:1])
    exported = torch.export.export(module, (x[:2],), dynamic_shapes=(({0: torch.export.Dim("batch")},),))
    for found, expected in zip(exported.module()(x), module(x), strict=True):
        torch.testing.assert_close(found, expected)


def test_a_deterministic_model_is_refused():
    with pytest.raises(ConversionError, match="moments: model must be Bayesian, got Linear without a posterior"):
        moments(nn.Linear(2, 2), torch.rand(1, 2))


def test_inputs_that_do_not_fit_are_refused():
    with pytest.raises(InvalidValueError, match="moments: the model rejects example_inputs, got RuntimeError"):
        moments(bayesify(nn.Linear(2, 2)), torch.rand(1, 3))


def test_an_operation_without_a_rule_is_named_with_its_module():
    class Sorting(nn.Module):
        def forward(self, x):
            return x.sort(-1).values

    bnn = bayesify(nn.Sequential(nn.Linear(3, 3), nn.Sequential(Sorting())))
    with pytest.raises(ConversionError, match=r"moments: '1\.0' calls sort, .* predict by weight samples"):
        moments(bnn, torch.rand(2, 3))


def test_the_model_is_left_alone():
    bnn = bayesify(convnet()).train()
    before = {name: tensor.clone() for name, tensor in bnn.state_dict().items()}
    x = torch.rand(2, 1, 12, 12)
    state = torch.get_rng_state()
    moments(bnn, x)
    assert bnn.training
    assert torch.equal(torch.get_rng_state(), state)
    for name, tensor in bnn.state_dict().items():
        assert torch.equal(tensor, before[name])


def test_the_deterministic_twin_gives_the_mean_of_a_linear_network():
    bnn = bayesify(nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2))).eval()
    x = torch.randn(5, 4)
    torch.testing.assert_close(moments(bnn, x)(x)[0], to_deterministic(bnn)(x))
