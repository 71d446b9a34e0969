"""The fixed draws of Gaussian logits, against many independent ones."""

import pytest
import torch

from bensemble.prediction.closed import OutputGaussian
from bensemble.prediction.noise import FEW_PAIRS, MANY_PAIRS, fixed_noise


@pytest.mark.parametrize("channels", [1, 2, 3, 10, 32, 33, 500])
@pytest.mark.parametrize("least", [FEW_PAIRS, MANY_PAIRS])
def test_second_moments_are_exact(channels, least):
    noise = fixed_noise(channels, least)
    assert least <= len(noise) < least + min(channels, MANY_PAIRS)
    torch.testing.assert_close(noise.square().mean(0), torch.ones(channels))
    if channels <= MANY_PAIRS:
        torch.testing.assert_close(noise.t() @ noise / len(noise), torch.eye(channels), rtol=0, atol=1e-5)


@pytest.mark.slow
@pytest.mark.parametrize("channels", [2, 10, 30])
@pytest.mark.parametrize("size", [0.3, 1.0])
def test_the_mutual_information_is_that_of_many_draws(channels, size):
    torch.manual_seed(channels)
    mean, variance = 3 * torch.randn(50, channels), (size * torch.rand(50, channels)).square()
    mixing = torch.linalg.qr(torch.randn(channels, channels)).Q

    def information(noise):
        (logits,) = OutputGaussian(mean, variance, mixing, -1, noise).draws(len(noise))
        probs = logits.softmax(-1)
        return torch.special.entr(probs.mean(0)).sum(-1) - torch.special.entr(probs).sum(-1).mean(0)

    many = information(torch.randn(10_000, channels))
    error = (information(fixed_noise(channels)) - many).square().mean().sqrt() / many.square().mean().sqrt()
    assert float(error) < 0.05
