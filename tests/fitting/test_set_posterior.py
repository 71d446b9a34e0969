"""Posteriors that are set by hand."""

import math

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from bensemble.errors import InvalidTypeError, InvalidValueError
from bensemble.fitting import set_posterior
from bensemble.posteriors import named_posteriors
from bensemble.pruning.masks import prune
from convert import bayesify

from .networks import net, snapshot, unchanged


def test_set_posterior_sets_what_is_named():
    bnn = bayesify(net())
    before = snapshot(bnn)
    sigma, mean = torch.rand(4, 3) + 0.1, torch.randn(4, 3)
    set_posterior(bnn, {"0.weight": sigma, "3.bias": 0.25}, {"0.weight": mean})
    posteriors = dict(named_posteriors(bnn))
    assert_close(posteriors["0.weight"].sigma(), sigma)
    assert_close(posteriors["3.bias"].sigma(), torch.full((2,), 0.25))
    assert torch.equal(posteriors["0.weight"].mu, mean)
    changed = {name for name, tensor in bnn.state_dict().items() if not torch.equal(tensor, before[name])}
    assert changed == {"0.w_mu", "0.w_rho", "3.b_rho"}
    set_posterior(bnn, {}, {"3.bias": torch.ones(2)})
    assert posteriors["3.bias"].mu.tolist() == [1, 1]


def test_set_posterior_keeps_masks():
    bnn = bayesify(nn.Linear(3, 1))
    prune(bnn, masks={"weight": torch.tensor([[1, 0, 0]])})
    set_posterior(bnn, {"weight": 0.1}, {"weight": torch.ones(1, 3)})
    assert bnn.w_mu.tolist() == [[1, 0, 0]]


@pytest.mark.parametrize(
    ("sigma", "mean", "error", "message"),
    [
        ({}, None, InvalidValueError, "sigma must name at least one posterior, got none"),
        ([0.1], None, InvalidTypeError, "sigma must map parameter names to values, got list"),
        (
            {"0.weigth": 0.1},
            None,
            InvalidValueError,
            r"sigma names '0\.weigth', which has no posterior; did you mean '0\.weight'",
        ),
        ({"1.weight": 0.1}, None, InvalidValueError, r"sigma names '1\.weight', which has no posterior"),
        (
            {"0.weight": torch.ones(3, 4)},
            None,
            InvalidValueError,
            r"sigma of '0\.weight' must have shape \(4, 3\), got \(3, 4\)",
        ),
        (
            {"0.bias": torch.tensor([1.0, 1, 1, 0])},
            None,
            InvalidValueError,
            r"sigma of '0\.bias' must be finite and above 0, got 0",
        ),
        ({"0.bias": -1.0}, None, InvalidValueError, "must be finite and above 0, got -1"),
        ({"0.bias": math.nan}, None, InvalidValueError, "must be finite and above 0, got nan"),
        ({"0.bias": "0.1"}, None, InvalidTypeError, r"sigma of '0\.bias' must be a tensor or a number, got str"),
        ({"0.bias": 0.1}, {"0.bias": 1.0}, InvalidTypeError, r"mean of '0\.bias' must be a tensor, got float"),
        (
            {"0.bias": 0.1},
            {"0.bias": torch.full((4,), math.inf)},
            InvalidValueError,
            r"mean of '0\.bias' must be finite",
        ),
        ({"0.bias": 0.0, "3.bias": torch.ones(3)}, {"3.bias": torch.ones(3)}, InvalidValueError, "3 problems"),
    ],
)
def test_set_posterior_refuses_as_a_whole(sigma, mean, error, message):
    bnn = bayesify(net())
    before = snapshot(bnn)
    with pytest.raises(error, match=message):
        set_posterior(bnn, sigma, mean)
    assert unchanged(bnn, before)
