"""A last layer with a posterior, of an MLP, a classifier of tokens, a segmenter."""

import pytest
import torch

from bensemble import fit_posterior

from .last_layers import CASES, of


@pytest.fixture(params=CASES)
def case(request):
    make, name, inputs, likelihood, targets, classes = CASES[request.param]
    torch.manual_seed(3)
    model, layer = of(make().double(), name)
    x, y = inputs(40), torch.randint(0, classes, targets(40))
    if x.is_floating_point():
        x = x.double()
    fit_posterior(model, [(x[:20], y[:20]), (x[20:], y[20:])], likelihood=likelihood, beta=1.0)
    return model, layer, x, y, likelihood
