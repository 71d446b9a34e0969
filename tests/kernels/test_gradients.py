"""Values and gradients of the hand-written steps against autograd in float64."""

import pytest
import torch
from torch import nn

from bensemble import BayesianConv2d, BayesianLinear, softplus
from bensemble.gaussian import sigma_from_rho
from bensemble.kernels import applies_to, draw_weight, fused_kl, shared_moments
from bensemble.kernels import local_reparameterization as kernel
from bensemble.operations import ConvolutionOp, LinearOp
from bensemble.priors import ARD, Normal

OPERATIONS = {
    "linear": (LinearOp(), (7, 3, 20), (30, 20), 30),
    "strided": (ConvolutionOp((2, 2), (1, 1), (1, 1), 1), (4, 6, 9, 9), (8, 6, 3, 3), 8),
    "depthwise": (ConvolutionOp((1, 1), (2, 2), (2, 2), 6), (4, 6, 9, 9), (6, 1, 3, 3), 6),
    "transposed": (ConvolutionOp((2, 2), (1, 1), (1, 1), 1, True, (1, 1)), (4, 6, 9, 9), (6, 8, 3, 3), 8),
    "one-dimensional": (ConvolutionOp((1,), (1,), (1,), 1), (4, 6, 9), (8, 6, 3), 8),
    "three-dimensional": (ConvolutionOp((1, 2, 1), (1, 0, 1), (1, 1, 1), 1), (2, 3, 5, 6, 7), (4, 3, 2, 2, 2), 4),
}


def _inputs(name, bias, layout=None):
    operation, x_shape, w_shape, outputs = OPERATIONS[name]
    x = torch.randn(x_shape)
    x = x if layout is None else x.to(memory_format=layout)
    tensors = [x, torch.randn(w_shape), torch.randn(w_shape) - 3]
    tensors += [torch.randn(outputs), torch.randn(outputs) - 3] if bias else [None, None]
    return operation, [None if t is None else t.requires_grad_() for t in tensors]


def local_reparameterization(x, w_mu, w_rho, b_mu, b_rho, operation, *dtype):
    """The kernel as a layer calls it."""
    bias = None if b_mu is None else shared_moments(b_mu, b_rho, Normal())
    return kernel(x, shared_moments(w_mu, w_rho, Normal()), bias, operation, *dtype)


def _plain(operation, tensors, noise):
    x, w_mu, w_rho, b_mu, b_rho = tensors
    b_var = None if b_rho is None else sigma_from_rho(b_rho).square()
    variance = operation.forward(x.square(), sigma_from_rho(w_rho).square(), b_var)
    return operation.forward(x, w_mu, b_mu) + variance.sqrt() * noise


def _doubles(tensors):
    return [None if t is None else t.detach().double().requires_grad_() for t in tensors]


def _relative(actual, expected):
    expected = expected.detach()
    return float((actual.detach().double() - expected).norm() / expected.norm())


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_values_and_gradients_agree_with_float64_autograd(name, bias):
    """To 1e-6, or to what the plain formula itself reaches in float32 where its products cancel."""
    operation, tensors = _inputs(name, bias)
    torch.manual_seed(1)
    output = local_reparameterization(*tensors, operation)
    torch.manual_seed(1)
    noise = torch.randn(output.shape)
    doubles = _doubles(tensors)
    expected, plain = _plain(operation, doubles, noise.double()), _plain(operation, tensors, noise)
    assert _relative(output, expected) < 1e-6
    upstream = torch.randn_like(output)
    leaves = [t for t in tensors if t is not None]
    right = torch.autograd.grad(expected, [t for t in doubles if t is not None], upstream.double())
    bounds = [
        max(1e-6, 2 * _relative(a, b)) for a, b in zip(torch.autograd.grad(plain, leaves, upstream), right, strict=True)
    ]
    for create_graph in (False, True):
        found = torch.autograd.grad(output, leaves, upstream, retain_graph=True, create_graph=create_graph)
        errors = [_relative(a, b) for a, b in zip(found, right, strict=True)]
        assert all(error < bound for error, bound in zip(errors, bounds, strict=True)), (errors, bounds)


@pytest.mark.parametrize("bias", [True, False], ids=["bias", "no bias"])
@pytest.mark.parametrize("name", OPERATIONS)
def test_a_variance_in_bfloat16_is_right_to_its_rounding(name, bias):
    operation, tensors = _inputs(name, bias)
    leaves = [t for t in tensors if t is not None]
    runs = []
    for dtype in (torch.float32, torch.bfloat16):
        torch.manual_seed(1)
        output = local_reparameterization(*tensors, operation, dtype)
        runs.append((output, *torch.autograd.grad(output.sum(), leaves, retain_graph=True)))
        assert output.dtype is torch.float32
        again = torch.autograd.grad(output.sum(), leaves)
        assert all(_relative(a, b) < 1e-6 for a, b in zip(again, runs[-1][1:], strict=True))
    noise = (runs[0][0] - operation.forward(tensors[0], tensors[1], tensors[3])).detach()
    assert 1e-5 < float((runs[1][0] - runs[0][0]).detach().norm() / noise.norm()) < 4e-3
    (_, x, w_mu, w_rho, *b), (_, low_x, low_w_mu, low_w_rho, *low_b) = runs
    assert torch.equal(low_w_mu, w_mu)
    assert _relative(low_x, x) < 1e-2
    assert 1e-6 < _relative(low_w_rho, w_rho) < 2e-2
    assert not b or (torch.equal(low_b[0], b[0]) and _relative(low_b[1], b[1]) < 1e-2)


@pytest.mark.parametrize("name", ["linear", "strided"])
def test_double_backward_agrees_with_float64_autograd(name):
    operation, tensors = _inputs(name, bias=True)
    torch.manual_seed(1)
    output = local_reparameterization(*tensors, operation)
    torch.manual_seed(1)
    noise = torch.randn(output.shape)
    doubles = _doubles(tensors)
    penalties = []
    for result, leaves in ((output, tensors), (_plain(operation, doubles, noise.double()), doubles)):
        (slope,) = torch.autograd.grad(result.square().sum(), leaves[0], create_graph=True)
        penalties.append(torch.autograd.grad(slope.square().sum(), leaves))
    assert max(_relative(a, b) for a, b in zip(*penalties, strict=True)) < 1e-5


def test_channels_last_agrees_with_contiguous():
    operation, tensors = _inputs("strided", bias=True, layout=torch.channels_last)
    torch.manual_seed(1)
    output = local_reparameterization(*tensors, operation)
    torch.manual_seed(1)
    noise = torch.randn(output.numel()).as_strided(output.shape, output.stride())
    doubles = _doubles(tensors)
    expected = _plain(operation, doubles, noise.double())
    assert _relative(output, expected) < 1e-6
    found = torch.autograd.grad(output.sum(), tensors)
    right = torch.autograd.grad(expected.sum(), doubles)
    assert max(_relative(a, b) for a, b in zip(found, right, strict=True)) < 1e-6


@pytest.mark.parametrize("shift", [-3.0, -12.0, -60.0, 1.0])
def test_a_drawn_weight_and_its_gradients_agree_with_float64(shift):
    mu, rho = torch.randn(30, 50).requires_grad_(), (torch.randn(30, 50) + shift).requires_grad_()
    torch.manual_seed(1)
    weight = draw_weight(shared_moments(mu, rho, Normal()))
    torch.manual_seed(1)
    noise, doubles = torch.randn(30, 50).double(), _doubles([mu, rho])
    expected = doubles[0] + sigma_from_rho(doubles[1]) * noise
    assert _relative(weight, expected) < 1e-6
    right = torch.autograd.grad(expected.pow(3).sum(), doubles, create_graph=True)
    for create_graph in (False, True):
        found = torch.autograd.grad(weight.pow(3).sum(), (mu, rho), retain_graph=True, create_graph=create_graph)
        assert max(_relative(a, b) for a, b in zip(found, right, strict=True)) < 1e-6
    twice = torch.autograd.grad(found[1].square().sum(), (mu, rho))
    wide = torch.autograd.grad(right[1].square().sum(), doubles)
    assert shift < -30 or max(_relative(a, b) for a, b in zip(twice, wide, strict=True)) < 1e-5


@pytest.mark.parametrize(("low", "high"), [(-60, -39), (-39.9, -10), (-10, -3.31), (-3.29, 30)])
@pytest.mark.parametrize("memory_format", [torch.contiguous_format, torch.channels_last])
def test_sigma_and_its_slope_are_exact_to_float32(low, high, memory_format):
    rho = torch.linspace(low, high, 8 * 50 * 9 * 9).view(50, 8, 9, 9).to(memory_format=memory_format)
    wide = rho.double().requires_grad_()
    exact = sigma_from_rho(wide)
    log_sigma = exact.log()
    log_sigma.sum().backward()
    usual, variance, slope = softplus.is_usual(rho), torch.empty_like(rho), torch.ones_like(rho)
    assert usual == (low > -40 and high < -3.3)
    sigma = softplus.softplus(rho, usual)
    torch.testing.assert_close(sigma, exact.detach().float(), rtol=5e-7, atol=0)
    torch.square(sigma, out=variance)
    softplus.times_slope_(slope, rho, variance, usual)
    torch.testing.assert_close(slope, wide.grad.float(), rtol=1e-6, atol=0)


def test_a_step_with_drawn_weights_has_the_gradients_of_its_parts():
    layer, x = BayesianConv2d(6, 8, 3, prior="pretrained"), torch.randn(5, 6, 9, 9)
    layer.estimator = "weights"
    steps = []
    for parts in (False, True):
        torch.manual_seed(0)
        nll, kl = layer.train()(x).square().mean(), layer.kl_divergence()
        layer.zero_grad()
        (nll.backward(), kl.backward()) if parts else (nll + kl).backward()
        steps.append([p.grad for p in layer.parameters()])
    for together, alone in zip(*steps, strict=True):
        torch.testing.assert_close(together, alone, rtol=1e-5, atol=1e-6)


PRIORS = {"normal": Normal(0.7), "ard": ARD(), "prior means": Normal(0.7, torch.randn(300, 500))}


@pytest.mark.parametrize("shift", [-3.0, -12.0, 1.0])
@pytest.mark.parametrize("name", PRIORS)
def test_the_kl_and_its_gradients_agree_with_float64(name, shift):
    mu, rho = torch.randn(300, 500).requires_grad_(), (torch.randn(300, 500) + shift).requires_grad_()
    doubles, prior = _doubles([mu, rho]), PRIORS[name]
    wide = Normal(0.7, prior.mean.double()) if name == "prior means" else prior
    kl = fused_kl(mu, rho, prior)
    expected = wide.kl(doubles[0], sigma_from_rho(doubles[1]))
    assert _relative(kl, expected) < 1e-6
    found, right = torch.autograd.grad(kl, (mu, rho), create_graph=False), torch.autograd.grad(expected, doubles)
    assert max(_relative(a, b) for a, b in zip(found, right, strict=True)) < 1e-6


@pytest.mark.parametrize("prior", ["normal", "ard", "pretrained"])
@pytest.mark.parametrize(
    "make", [lambda p: BayesianLinear(40, 30, prior=p), lambda p: BayesianConv2d(6, 8, 3, prior=p)]
)
def test_one_step_has_the_gradients_of_its_parts(make, prior):
    """The NLL and the KL through one node, one by one, twice, and with a KL that was asked for before the forward."""
    layer = make(prior)
    x = torch.randn(5, 40) if isinstance(layer, nn.Linear) else torch.randn(5, 6, 9, 9)

    def gradients(*passes):
        layer.zero_grad()
        torch.manual_seed(3)
        for loss in passes:
            loss()
        return torch.cat([p.grad.flatten() for p in layer.parameters()])

    nll = gradients(lambda: layer(x).square().mean().backward())
    kl = gradients(lambda: (0.1 * layer.kl_divergence()).backward())
    together = gradients(lambda: (layer(x).square().mean() + 0.1 * layer.kl_divergence()).backward())
    before = gradients(lambda: (0.1 * layer.kl_divergence() + layer(x).square().mean()).backward())

    def one_by_one():
        first = layer(x).square().mean()
        second = 0.1 * layer.kl_divergence()
        first.backward()
        second.backward()

    def twice():
        loss = (layer(x).square().mean() + 0.1 * layer.kl_divergence()) / 2
        loss.backward(retain_graph=True)
        loss.backward()

    for found in (together, before, gradients(one_by_one), gradients(twice)):
        torch.testing.assert_close(found, nll + kl, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("frozen", ["w_mu", "w_rho", "b_mu", "b_rho"])
def test_frozen_parts_get_no_gradient_and_change_no_other(frozen):
    layer, x = BayesianLinear(20, 10), torch.randn(4, 20)
    grads = []
    for parts in ([], [frozen]):
        layer.zero_grad()
        for name, parameter in layer.named_parameters():
            parameter.requires_grad_(name not in parts)
        torch.manual_seed(3)
        (layer(x).square().mean() + layer.kl_divergence()).backward()
        grads.append({name: p.grad for name, p in layer.named_parameters()})
    assert grads[1].pop(frozen) is None
    for name, grad in grads[1].items():
        torch.testing.assert_close(grad, grads[0][name])


@pytest.mark.parametrize("shift", [-3.0, 1.0])
@pytest.mark.parametrize("name", PRIORS)
def test_second_derivatives_of_the_kl_agree_with_float64_autograd(name, shift):
    mu, rho = torch.randn(300, 500).requires_grad_(), (torch.randn(300, 500) + shift).requires_grad_()
    doubles, prior = _doubles([mu, rho]), PRIORS[name]
    wide = Normal(0.7, prior.mean.double()) if name == "prior means" else prior
    penalties = []
    for kl, leaves in (
        (fused_kl(mu, rho, prior), [mu, rho]),
        (wide.kl(doubles[0], sigma_from_rho(doubles[1])), doubles),
    ):
        slopes = torch.autograd.grad(kl, leaves, create_graph=True)
        found = torch.autograd.grad(sum(slope.pow(3).mean() for slope in slopes), leaves)
        penalties.append([*slopes, *found])
    assert max(_relative(a, b) for a, b in zip(*penalties, strict=True)) < 1e-5


@pytest.mark.parametrize("estimator", ["local", "weights"])
def test_a_step_in_float64_has_first_and_second_derivatives(estimator):
    """By finite differences of a whole step, noise held fixed."""
    layer, x = BayesianLinear(5, 3, dtype=torch.float64), torch.randn(4, 5, dtype=torch.float64)
    layer.train().estimator = estimator
    assert applies_to(x, *layer.parameters())
    names, values = zip(*layer.named_parameters(), strict=True)

    def step(*tensors):
        torch.manual_seed(0)
        output = torch.func.functional_call(layer, dict(zip(names, tensors, strict=True)), x)
        return output.square().sum() + layer_kl(dict(zip(names, tensors, strict=True)))

    def layer_kl(tensors):
        return sum(fused_kl(tensors[f"{stem}_mu"], tensors[f"{stem}_rho"], Normal()) for stem in "wb")

    inputs = [value.detach().clone().requires_grad_() for value in values]
    assert torch.autograd.gradcheck(step, inputs)
    assert torch.autograd.gradgradcheck(step, inputs)
