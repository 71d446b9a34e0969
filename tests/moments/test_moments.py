"""Moments of whole networks against weight samples."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import bensemble
from bensemble.errors import ConversionError, InvalidValueError
from convert import bayesify, check_moments, moments, to_deterministic

from .sampling import sampled


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


def test_inference_mode_makes_no_difference():
    bnn = bayesify(convnet(), init_sigma=uneven(0.1)).eval()
    x = torch.rand(2, 1, 12, 12)
    with torch.inference_mode():
        inside = moments(bnn, x + 0)(x)
    for found, expected in zip(inside, moments(bnn, x)(x), strict=True):
        torch.testing.assert_close(found, expected)


def test_a_deterministic_model_is_refused():
    with pytest.raises(ConversionError, match="moments: model must be Bayesian, got Linear without a posterior"):
        moments(nn.Linear(2, 2), torch.rand(1, 2))


def test_inputs_that_do_not_fit_are_refused():
    with pytest.raises(InvalidValueError, match="moments: the model rejects example_inputs, got RuntimeError"):
        moments(bayesify(nn.Linear(2, 2)), torch.rand(1, 3))


class Then(nn.Module):
    """A function of one or more layers as a module."""

    def __init__(self, function, *layers: nn.Module):
        super().__init__()
        self.function, self.layers = function, nn.ModuleList(layers)

    def forward(self, x):
        return self.function(x, *self.layers)


def in_a_network(function, *layers: nn.Module, first: nn.Module | None = None) -> nn.Module:
    """The function at ``1.0``, after an uncertain layer."""
    return nn.Sequential(first or nn.Linear(4, 4), nn.Sequential(Then(function, *layers)))


SHARED = nn.Linear(4, 4)
REFUSALS = {
    "layer norm": (
        nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.LayerNorm(4))), (4,), r"'1\.0' calls layer_norm, .* no rule",
    ),
    "attention": (nn.TransformerEncoderLayer(4, 2, 8, batch_first=True), (3, 4), r"'self_attn' calls"),
    "no rule": (in_a_network(lambda x: x.sort(-1).values), (4,), r"'1\.0' calls sort, .* no rule for it"),
    "used twice": (
        in_a_network(lambda x, layer: layer(layer(x)), SHARED), (4,),
        r"'1\.0\.layers\.0' calls linear, .* '1\.0\.layers\.0\.weight' for a second time",
    ),
    "product": (in_a_network(lambda x: x * x.sigmoid()), (4,), "calls mul, .* vary together"),
    "division": (in_a_network(lambda x: 1 / x), (4,), "calls reciprocal|calls div, .* a division by"),
    "batch statistics": (
        in_a_network(lambda x, norm: norm(x), nn.BatchNorm1d(4, track_running_stats=False)), (4,),
        "calls batch_norm, .* statistics of the batch",
    ),
    "softmax over positions": (in_a_network(lambda x: x.softmax(1)), (3, 4), "calls softmax, .* another axis"),
    "mean over features": (in_a_network(lambda x: x.mean(-1)), (3, 4), "calls mean, .* other axes than all positions"),
    "mixing positions": (
        in_a_network(lambda x, layer: layer(x.transpose(1, 2)), nn.Linear(3, 3)), (3, 4),
        "calls linear, .* features on another axis than the last",
    ),
    "across the batch": (in_a_network(lambda x: x.transpose(0, 1)), (3, 4), "calls transpose, .* the batch axis"),
    "windows of two sizes": (
        in_a_network(nn.AdaptiveAvgPool2d(3), first=nn.Conv2d(1, 2, 3)), (1, 9, 9),
        r"calls adaptive_avg_pool2d, .* windows of different sizes, from \(7, 7\) to \(3, 3\)",
    ),
    "rounded up": (
        in_a_network(nn.MaxPool2d(2, ceil_mode=True), first=nn.Conv2d(1, 2, 3)), (1, 9, 9),
        "calls max_pool2d, .* ceil_mode=True",
    ),
    "another axis": (
        in_a_network(lambda x: torch.cat([x, x], 2), first=nn.Conv2d(1, 2, 3)), (1, 9, 9),
        "calls cat, .* along another axis than that of the features",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", REFUSALS)
def test_what_has_no_moments_is_named_with_its_module(name):
    model, shape, message = REFUSALS[name]
    with pytest.raises(ConversionError, match=f"moments: .*(?:{message}).*; predict by weight samples"):
        moments(bayesify(model), torch.rand(2, *shape))


def test_an_output_without_uncertain_weights_is_refused():
    class Two(nn.Module):
        def __init__(self):
            super().__init__()
            self.layer = nn.Linear(3, 3)

        def forward(self, x):
            return {"logits": self.layer(x), "inputs": x * 2}

    bnn, x = bayesify(Two()), torch.rand(2, 3)
    assert moments(bnn, x)(x)[0].shape == (2, 3)
    with pytest.raises(ConversionError, match="moments: the output of Two must depend on an uncertain weight"):
        moments(bnn, x, output="inputs")
    with pytest.raises(InvalidValueError, match="moments: output must select one of the model's outputs as it is"):
        moments(bnn, x, output=lambda found: found["logits"] + 1)


def test_tied_weights_are_refused():
    model = nn.Sequential(nn.Linear(4, 4), nn.ReLU(), nn.Linear(4, 4))
    model[2].weight = model[0].weight
    with pytest.raises(ConversionError, match=r"moments: '2' calls linear, .* for a second time"):
        moments(bayesify(model), torch.rand(2, 4))


def test_pruned_weights_have_no_variance():
    bnn = bayesify(nn.Sequential(nn.Linear(4, 3), nn.Linear(3, 2)), init_sigma=0.1).eval()
    bensemble.prune(bnn, threshold=2.0)
    x = torch.randn(5, 4)
    _, variance = moments(bnn, x)(x)
    truth = sampled(bnn, x, 4000)
    assert bool(((variance.sqrt() - truth.std).abs() <= 5 * truth.std_error).all())


def test_the_report_compares_with_samples_and_prints_well():
    bnn = bayesify(nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)), init_sigma=uneven(0.2)).eval()
    x = torch.randn(6, 4)
    report = check_moments(bnn, x, 800, generator=torch.Generator().manual_seed(0))
    assert report.std_ratio.shape == report.mean_error.shape == (6, 3)
    assert abs(float(report.std_ratio.mean()) - 1) < 5 * report.std_noise
    assert float(report.mean_error.abs().max()) < 0.1 + 5 * report.mean_noise
    assert "Moments against 800 weight samples, 6 examples" in repr(report)
    with pytest.raises(InvalidValueError, match="check_moments: num_samples must be at least 2, got 1"):
        check_moments(bnn, x, 1)


def test_writes_in_place_are_seen_by_later_readers():
    def write(x):
        x.relu_()
        return x

    bnn = bayesify(nn.Sequential(nn.Linear(4, 5), Then(write))).eval()
    same = nn.Sequential(bnn[0], nn.ReLU())
    x = torch.randn(3, 4)
    for found, expected in zip(moments(bnn, x)(x), moments(same, x)(x), strict=True):
        torch.testing.assert_close(found, expected)


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
