"""The mathematics of a Gaussian weight, against torch.distributions, closed forms and finite differences."""

import math

import pytest
import torch
import torch.nn.functional as F
from hypothesis import given
from hypothesis import strategies as st
from torch.distributions import Normal, kl_divergence
from torch.testing import assert_close

from bensemble.gaussian import (
    RHO_MIN,
    add_noise,
    entropy,
    kl_normal,
    precise,
    rho_from_sigma,
    root_mean_square,
    sigma_from_rho,
    snr,
    standard_normal_like,
    tracing,
    variance_from_rho,
)
from bensemble.testing.moments import Moments, require_same_moments

SIGMAS = st.floats(1e-12, 800.0)


@given(sigma=SIGMAS)
def test_rho_and_sigma_are_inverse_from_1e_minus_12_to_800(sigma):
    wide = torch.tensor(sigma, dtype=torch.float64)
    assert_close(sigma_from_rho(rho_from_sigma(wide)), wide, rtol=1e-13, atol=0)
    narrow = wide.float()
    # Near rho = -27 a step of float32 is 2e-6 of sigma.
    assert_close(sigma_from_rho(rho_from_sigma(narrow)), narrow, rtol=4e-6, atol=0)


@pytest.mark.parametrize("shape", [(3000, 3000), (512, 256, 3, 3), (7,), ()])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32, torch.float64])
def test_the_scale_of_large_tensors_is_exact(shape, dtype):
    values = (3 * torch.randn(shape)).to(dtype)
    expected = values.double().square().mean().sqrt()
    found = root_mean_square(values)
    assert found.dtype is (torch.float64 if dtype is torch.float64 else torch.float32)
    assert_close(found.double(), expected, rtol=2e-6, atol=0)


def test_the_scale_of_nothing_is_zero():
    assert root_mean_square(torch.empty(0, 3)) == root_mean_square(torch.empty(0)) == 0.0


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float32, torch.float64])
def test_sigma_is_positive_finite_and_precise_for_every_rho(dtype):
    rho = torch.tensor([-1e8 if dtype is not torch.float16 else -6e4, -1000.0, -50.0, 0.0, 80.0, 1e4]).to(dtype)
    rho.requires_grad_()
    sigma = sigma_from_rho(rho)
    assert sigma.dtype is (torch.float64 if dtype is torch.float64 else torch.float32)
    assert (sigma > 0).all()
    assert sigma.isfinite().all()
    assert_close(sigma[3:].double(), rho[3:].double().exp().log1p().where(rho[3:] < 80, rho[3:].double()))
    sigma.log().sum().backward()
    assert rho.grad.isfinite().all()
    assert precise(rho).dtype is sigma.dtype


def test_rho_of_a_vanishing_sigma_stops_at_its_least_value():
    assert_close(rho_from_sigma(torch.tensor([0.0, 1e-30])), torch.full((2,), RHO_MIN))


@given(
    mu=st.floats(-30, 30), sigma=st.floats(1e-6, 50), prior_mean=st.floats(-30, 30), prior_sigma=st.floats(1e-3, 1e3)
)
def test_kl_normal_is_that_of_torch_distributions(mu, sigma, prior_mean, prior_sigma):
    q = [torch.tensor([value, 1.0], dtype=torch.float64) for value in (mu, sigma)]
    p = [torch.tensor(value, dtype=torch.float64) for value in (prior_mean, prior_sigma)]
    expected = kl_divergence(Normal(*q), Normal(*p))
    assert_close(kl_normal(*q, *p), expected.sum(), rtol=1e-6, atol=1e-9)
    # float32 loses digits where large terms cancel, and nowhere else.
    ratio, distance = q[1] / p[1], (q[0] - p[0]) / p[1]
    size = (ratio.square() / 2 + distance.square() / 2 + 0.5 + ratio.log().abs()).sum()
    single = kl_normal(*(t.float() for t in (*q, *p)))
    assert single.dtype is torch.float32
    assert_close(single.double(), expected.sum(), rtol=0, atol=1e-5 * float(size))


def test_kl_normal_broadcasts_its_prior_and_is_zero_at_it():
    mu, sigma = torch.randn(4, 3, dtype=torch.float64), torch.rand(4, 3, dtype=torch.float64) + 0.1
    assert_close(kl_normal(mu, sigma, mu, sigma), torch.zeros((), dtype=torch.float64))
    means, sigmas = torch.randn(4, 1).double(), torch.rand(3).double() + 0.1
    assert_close(kl_normal(mu, sigma, means, sigmas), kl_divergence(Normal(mu, sigma), Normal(means, sigmas)).sum())


def test_the_kl_of_half_precision_means_is_computed_in_float32():
    mu = torch.full((1000,), 1.0, dtype=torch.float16)
    assert_close(kl_normal(mu, torch.full((1000,), 1e-4), 0.0, 1.0).item(), 1000 * (math.log(1e4) + 0.5e-8))


def test_entropy_is_that_of_torch_distributions():
    sigma = torch.rand(5, dtype=torch.float64) + 1e-3
    assert_close(entropy(sigma), Normal(0.0, sigma).entropy().sum())


def test_snr_is_a_plain_ratio():
    mu, sigma = torch.tensor([-2.0, 0.0, 3.0]), torch.tensor([0.5, 1.0, 6.0])
    assert snr(mu, sigma).tolist() == [4.0, 0.0, 0.5]
    assert snr(mu.half(), sigma).dtype is torch.float32


def test_added_noise_has_the_given_moments():
    mean, variance = torch.tensor([0.0, 5.0, -1.0]), torch.tensor([1e-8, 4.0, 0.0])
    moments = Moments()
    moments.add(add_noise(mean.expand(20_000, 3), variance.expand(20_000, 3)) - mean)
    # float32 around 5 has steps of 5e-7, far below the standard errors.
    require_same_moments(moments, torch.zeros(3), variance, "added noise")


def test_the_check_of_moments_notices_a_sigma_that_is_ten_percent_off():
    moments = Moments()
    moments.add(1.1 * torch.randn(10_000, 4))
    with pytest.raises(AssertionError, match=r"the variance of noise is 1\.\d+ where 1 is due, .* standard errors off"):
        require_same_moments(moments, torch.zeros(4), torch.ones(4), "noise")
    moments = Moments()
    moments.add(0.1 + torch.randn(10_000, 4))
    with pytest.raises(AssertionError, match=r"the mean of noise is 0\.\d+ where 0 is due"):
        require_same_moments(moments, torch.zeros(4), torch.ones(4), "noise")


def test_gradients_of_noise_are_those_of_the_formula_and_finite_at_zero_variance():
    mean, variance = torch.zeros(4, requires_grad=True), torch.tensor([0.0, 1e-30, 0.25, 9.0], requires_grad=True)
    torch.manual_seed(0)
    add_noise(mean, variance).sum().backward()
    torch.manual_seed(0)
    eps = torch.randn(4)
    assert mean.grad.eq(1).all()
    assert variance.grad.isfinite().all()
    assert variance.grad[0] == 0
    assert_close(variance.grad[1:], 0.5 * eps[1:] / variance.detach()[1:].sqrt())


def test_noise_keeps_the_dtype_of_the_mean():
    for dtype in (torch.bfloat16, torch.float16, torch.float64):
        assert add_noise(torch.zeros(3, dtype=dtype), torch.ones(3)).dtype is dtype


@pytest.mark.parametrize(
    ("tensor", "layout"),
    [
        (torch.empty(2, 3, 4, 5), torch.contiguous_format),
        (torch.empty(2, 3, 4, 5).to(memory_format=torch.channels_last), torch.channels_last),
        (torch.empty(2, 3, 4, 5, 6).to(memory_format=torch.channels_last_3d), torch.channels_last_3d),
    ],
)
def test_noise_has_the_layout_of_its_tensor_and_no_value_twice(tensor, layout):
    noise = standard_normal_like(tensor)
    assert noise.shape == tensor.shape
    assert noise.stride() == tensor.stride()
    assert noise.is_contiguous(memory_format=layout)
    assert noise.unique().numel() == noise.numel()
    assert standard_normal_like(tensor.double()).dtype is torch.float64


def test_noise_of_a_large_tensor_is_standard_normal():
    moments = Moments()
    moments.add(standard_normal_like(torch.empty(50_000, 2, 1, 1).to(memory_format=torch.channels_last)))
    require_same_moments(moments, torch.zeros(2, 1, 1), torch.ones(2, 1, 1), "noise")


def test_tracing_is_known_under_transforms_and_compilation():
    seen = []

    def look(x):
        seen.append(tracing())
        return F.relu(x).sum()

    look(torch.ones(3))
    torch.func.vmap(look)(torch.ones(2, 3))
    torch.func.grad(look)(torch.ones(3))
    assert seen == [False, True, True]
    torch._dynamo.reset()
    assert torch.compile(lambda x: x + 1 if tracing() else x, backend="eager", fullgraph=True)(torch.zeros(1)) == 1


def test_the_variance_is_that_of_sigma():
    rho = torch.linspace(-70, 70, 501)
    for values in (rho, rho.double(), rho + 200, rho[:0], rho.half()):
        assert_close(variance_from_rho(values), sigma_from_rho(values).square(), rtol=1e-5, atol=0)
