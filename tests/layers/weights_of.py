"""A layer and what it must leave untouched."""

import copy

import torch

from bensemble.layers import BayesianLinear


def layer(training=True, **kwargs):
    return BayesianLinear(3, 4, **kwargs).train(training)


def frozen_state(module):
    return type(module), {key: (value, copy.deepcopy(value)) for key, value in module._parameters.items()}


def assert_untouched(module, before):
    cls, parameters = before
    assert type(module) is cls
    assert list(module._parameters) == list(parameters)
    for key, (parameter, value) in parameters.items():
        assert module._parameters[key] is parameter
        assert value is None or torch.equal(parameter, value)
    assert not module._forward_pre_hooks
