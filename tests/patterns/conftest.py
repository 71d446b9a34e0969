import pytest
import torch
from torch import Tensor, nn

from convert import bayesify

from .architectures import Mixed


@pytest.fixture
def bnn() -> nn.Module:
    """A Bayesian model with both kinds of layers, in eval mode."""
    return bayesify(Mixed().eval())


@pytest.fixture
def x() -> Tensor:
    """An input for it."""
    return torch.randn(2, 3, 4)
