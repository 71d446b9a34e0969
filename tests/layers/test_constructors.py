"""The published constructors: order, defaults, what the arguments do, and what they refuse."""

import inspect
import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import bensemble
from bensemble.errors import BensembleError, InvalidTypeError, InvalidValueError
from bensemble.layers import BaseBayesianLayer, BayesianConv2d, BayesianConvTranspose2d, BayesianLinear
from bensemble.priors import ARD, Normal
from convert import bayesify

NAN = float("nan")


def positional(cls):
    kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
    parameters = inspect.signature(cls).parameters.values()
    return [(p.name, None if p.default is p.empty else p.default) for p in parameters if p.kind in kinds]


def test_the_published_signatures_stay():
    assert positional(BaseBayesianLayer) == [("prior_sigma", 1.0)]
    assert positional(BayesianLinear) == [
        ("in_features", None),
        ("out_features", None),
        ("prior_sigma", 1.0),
        ("init_sigma", 0.1),
        ("weight_init", "kaiming"),
    ]
    assert positional(BayesianConv2d) == [
        ("in_channels", None),
        ("out_channels", None),
        ("kernel_size", None),
        ("stride", 1),
        ("padding", 0),
        ("dilation", 1),
        ("groups", 1),
        ("prior_sigma", 1.0),
        ("init_sigma", 0.1),
    ]
    methods = [BaseBayesianLayer.get_pruning_masks, BaseBayesianLayer.apply_pruning]
    assert [inspect.signature(method).parameters["threshold"].default for method in methods] == [0.83, 0.83]


def test_parameters_have_the_published_names_and_shapes():
    linear = BayesianLinear(3, 5)
    assert {name: tuple(p.shape) for name, p in linear.named_parameters()} == {
        "w_mu": (5, 3),
        "w_rho": (5, 3),
        "b_mu": (5,),
        "b_rho": (5,),
    }
    convolution = BayesianConv2d(4, 6, (1, 2), groups=2, bias=False)
    assert {name: tuple(p.shape) for name, p in convolution.named_parameters()} == {
        "w_mu": (6, 2, 1, 2),
        "w_rho": (6, 2, 1, 2),
    }
    assert isinstance(linear, (BaseBayesianLayer, nn.Linear))


@pytest.mark.parametrize(
    ("weight_init", "variance"),
    [("kaiming", 2 / 300), ("xavier", 2 / (300 + 200)), ("normal", (1 / math.sqrt(300)) ** 2 / 3)],
)
def test_weight_init_sets_the_variance_of_the_means(weight_init, variance):
    layer = BayesianLinear(300, 200, weight_init=weight_init)
    count = layer.w_mu.numel()
    assert_close(layer.w_mu.mean().item(), 0.0, atol=5 * math.sqrt(variance / count), rtol=0)
    # The standard error of a variance is largest for the normal distribution, among those here.
    assert_close(layer.w_mu.var().item(), variance, atol=5 * variance * math.sqrt(2 / count), rtol=0)
    assert layer.b_mu.eq(0).all()
    if weight_init == "normal":
        assert layer.w_mu.abs().max() <= 1 / math.sqrt(300)


@pytest.mark.parametrize(
    "make", [lambda **k: BayesianLinear(50, 400, **k), lambda **k: BayesianConv2d(10, 400, (1, 5), **k)]
)
def test_sigma_starts_where_it_is_told_to_and_means_by_he(make):
    layer = make(init_sigma=0.02)
    for posterior in layer.posteriors():
        assert_close(posterior.sigma(), torch.full_like(posterior.mu, 0.02))
    assert_close(make().posteriors().__next__().sigma().max().item(), 0.1)
    assert_close(layer.w_mu.var().item(), 2 / 50, atol=5 * 2 / 50 * math.sqrt(2 / layer.w_mu.numel()), rtol=0)


def test_the_prior_can_be_a_number_a_name_or_an_object():
    linear = BayesianLinear(3, 2, prior_sigma=0.5)
    assert all(posterior.prior.sigma == 0.5 for posterior in linear.posteriors())
    assert all(isinstance(p.prior, ARD) for p in BayesianLinear(3, 2, prior="ard").posteriors())
    pretrained = BayesianConv2d(3, 2, 1, prior="pretrained", init_sigma=0.3)
    assert_close(pretrained.kl_divergence().item(), 0.0, atol=1e-5, rtol=0)
    own = Normal(2.0)
    assert all(p.prior.sigma == 2.0 for p in BayesianConvTranspose2d(3, 2, 1, prior=own).posteriors())


def test_the_prior_sigma_of_every_twin_can_be_read_and_set():
    plain = nn.Linear(4, 3)
    rms = plain.weight.detach().square().mean().sqrt()
    assert_close(torch.as_tensor(bayesify(plain).prior_sigma), rms * (1 + 0.05**2) ** 0.5)
    assert bayesify(plain, prior="ard").prior_sigma is None
    for layer in (bayesify(plain), bayesify(plain, prior="ard"), BayesianLinear(4, 3)):
        layer.prior_sigma = 0.5
        assert layer.prior_sigma == 0.5
        q = torch.distributions.Normal(torch.cat([layer.w_mu.flatten(), layer.b_mu]), _sigmas(layer))
        expected = torch.distributions.kl_divergence(q, torch.distributions.Normal(0.0, 0.5)).sum()
        assert_close(layer.kl_divergence(), expected)
    with pytest.raises(InvalidValueError, match=r"BayesianLinear: prior_sigma must be finite and above 0, got 0"):
        layer.prior_sigma = 0


def test_a_subclass_may_learn_its_prior_sigma():
    class Learnt(BayesianLinear):
        def __init__(self):
            super().__init__(2, 2)
            self.prior_sigma = nn.Parameter(torch.tensor(0.3))

    layer = Learnt()
    assert layer.prior_sigma is dict(layer.named_parameters())["prior_sigma"]


def _sigmas(layer):
    return torch.nn.functional.softplus(torch.cat([layer.w_rho.flatten(), layer.b_rho]))


def test_device_and_dtype_reach_the_tensors():
    layer = BayesianConv2d(3, 2, 1, device="meta", dtype=torch.float16)
    assert {p.device.type for p in layer.parameters()} == {"meta"}
    assert layer.w_mu.dtype is torch.float16
    assert layer.w_rho.dtype is torch.float32
    assert BayesianLinear(3, 2, dtype=torch.float64).w_rho.dtype is torch.float64


@pytest.mark.parametrize("name", ["prior_sigma", "init_sigma"])
@pytest.mark.parametrize("value", [0, -0.1, NAN, float("inf")])
@pytest.mark.parametrize(
    "make",
    [
        lambda **k: BayesianLinear(3, 2, **k),
        lambda **k: BayesianConv2d(3, 2, 1, **k),
        lambda **k: BayesianConvTranspose2d(3, 2, 1, **k),
    ],
)
def test_a_sigma_that_is_not_positive_is_refused(make, name, value):
    with pytest.raises(InvalidValueError, match=f"Bayesian.*: {name} must be finite and above 0, got {value}"):
        make(**{name: value})


def test_a_sigma_of_the_wrong_type_is_refused():
    for value in ("0.1", None, True, torch.tensor(0.1)):
        with pytest.raises(InvalidTypeError, match="BayesianLinear: init_sigma must be a number, got "):
            BayesianLinear(3, 2, init_sigma=value)
    with pytest.raises(InvalidValueError, match="BaseBayesianLayer: prior_sigma must be finite and above 0, got -1"):
        BaseBayesianLayer(-1)


def test_unknown_priors_and_inits_are_refused():
    with pytest.raises(
        InvalidValueError, match=r"prior must be one of normal, empirical, pretrained, ard, .* got 'horse'"
    ):
        BayesianLinear(3, 2, prior="horse")
    for prior in (3, Normal, nn.Linear(1, 1)):
        with pytest.raises(
            InvalidTypeError, match=r"BayesianConv2d: prior must be .* or an object with kl\(mu, sigma\)"
        ):
            BayesianConv2d(3, 2, 1, prior=prior)
    with pytest.raises(InvalidValueError, match="weight_init must be 'kaiming', 'xavier' or 'normal', got 'he'"):
        BayesianLinear(3, 2, weight_init="he")
    with pytest.raises(
        InvalidValueError, match=r"mean of the prior must be one number or one per weight, \(2, 3\), got"
    ):
        BayesianLinear(3, 2, bias=False, prior=Normal(1.0, torch.zeros(3)))
    assert issubclass(InvalidValueError, (BensembleError, ValueError))


def test_reset_parameters_starts_over():
    layer = BayesianLinear(30, 20, init_sigma=0.2)
    before = layer.w_mu.detach().clone()
    nn.init.constant_(layer.w_rho, 3.0)
    layer.reset_parameters()
    assert not torch.equal(layer.w_mu, before)
    assert_close(layer.w_rho, BayesianLinear(30, 20, init_sigma=0.2).w_rho)


def test_a_layer_without_posteriors_has_no_kl_and_nothing_to_prune():
    layer = BaseBayesianLayer()
    assert layer.kl_divergence() == 0
    assert layer.get_pruning_masks() == {}
    assert layer.apply_pruning() == 0


def test_a_user_layer_declares_pairs_and_gets_kl_snr_and_masks():
    class Scale(bensemble.BaseBayesianLayer):
        def __init__(self):
            super().__init__(prior_sigma=0.5)
            self.scale_mu = nn.Parameter(torch.tensor([1.0, 0.001]))
            self.scale_rho = nn.Parameter(torch.full((2,), -3.0))
            self.lone_mu = nn.Parameter(torch.ones(1))

    layer = Scale()
    sigma = nn.functional.softplus(torch.tensor(-3.0))
    expected = torch.distributions.kl_divergence(
        torch.distributions.Normal(layer.scale_mu, sigma), torch.distributions.Normal(0.0, 0.5)
    ).sum()
    assert_close(layer.kl_divergence(), expected)
    masks = layer.get_pruning_masks()
    assert list(masks) == ["scale_mu"]
    assert masks["scale_mu"].tolist() == [1.0, 0.0]
    assert layer.apply_pruning() == 0.5
    assert layer.scale_mu.tolist() == [1.0, 0.0]
    assert_close(
        layer.kl_divergence(),
        expected
        - torch.distributions.kl_divergence(
            torch.distributions.Normal(0.001, sigma), torch.distributions.Normal(0.0, 0.5)
        ),
    )
