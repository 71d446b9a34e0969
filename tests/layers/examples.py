"""A small instance, and an input that it takes, of every registered deterministic type.

Both are found by trying, so a type that is registered later needs no entry here.
"""

import inspect
from itertools import product

import torch

from bensemble.layers import bayesian_type, registered_types

SIZES = {"in_features": 3, "out_features": 4, "in_channels": 2, "out_channels": 4, "nx": 3, "nf": 4}
KERNEL = 2


def types():
    """Every registered deterministic type, Hugging Face's included where it is installed."""
    try:
        from transformers.pytorch_utils import Conv1D
    except ImportError:
        pass
    else:
        bayesian_type(Conv1D)
    return sorted(registered_types(), key=lambda nn_type: nn_type.__name__)


def make(cls, **kwargs):
    """An instance of a layer type, all required arguments small."""
    required = [p.name for p in inspect.signature(cls).parameters.values() if p.default is p.empty]
    named = [name for name in required if name not in ("args", "kwargs")]
    return cls(**{name: SIZES.get(name, KERNEL) for name in named or _names_of_base(cls)}, **kwargs)


def input_for(module):
    """A small input that the module takes, batch first."""
    for axes, channels in product(range(4), (2, 3, 4)):
        x = torch.randn(3, channels, *[3, 2, 2][:axes])
        try:
            module(x)
        except (RuntimeError, ValueError):
            continue
        return x
    raise AssertionError(f"no input found for {module}")


def _names_of_base(cls):
    base = cls.deterministic_class
    return [p.name for p in inspect.signature(base).parameters.values() if p.default is p.empty]
