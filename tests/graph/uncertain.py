"""Networks with a posterior, and when two compute the same."""

from __future__ import annotations

import torch
from torch import Tensor, nn

import bensemble
from convert import bayesify

from .masking import shift_norms

IMAGES, TOKENS = torch.randn(2, 3, 12, 12), torch.randint(0, 50, (2, 6))


def parameters(model: nn.Module) -> int:
    return sum(p.numel() for p in model.parameters())


def uncertain(model: nn.Module, inputs: Tensor, **options) -> nn.Module:
    """A posterior whose signal-to-noise ratios differ from channel to channel."""
    shift_norms(model.eval(), torch.Generator().manual_seed(1))
    bnn = bayesify(model, example_inputs=inputs, **options)
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        for _, posterior in bensemble.named_posteriors(bnn):
            posterior.rho.add_(torch.rand(posterior.rho.shape, generator=generator))
    return bnn


@torch.no_grad()
def assert_same(small: nn.Module, model: nn.Module, inputs: Tensor) -> None:
    """Within 1e-5 of the largest output."""
    expected = model(inputs)
    assert float((small(inputs) - expected).abs().max()) <= 1e-5 * float(expected.abs().max())
