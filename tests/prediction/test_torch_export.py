"""What docs/runtimes.md says of torch.export and a closed-form last layer."""

import pytest
import torch
from torch import nn

import bensemble
from convert import bayesify, last_layer


class Probabilities(nn.Module):
    def __init__(self, bnn):
        super().__init__()
        self.bnn = bnn

    def forward(self, x):
        return bensemble.predict(self.bnn, x, likelihood="categorical").probs


@pytest.fixture
def head():
    net = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Linear(8, 3)).eval()
    return bayesify(net, include=last_layer(net, torch.randn(2, 4)), example_inputs=torch.randn(2, 4)).eval()


@pytest.mark.slow
def test_the_means_can_be_exported_by_torch(head):
    x = torch.randn(5, 4)
    program = torch.export.export(head, (x,))
    torch.testing.assert_close(program.module()(x), head(x), rtol=0, atol=1e-6)


@pytest.mark.slow
def test_predict_cannot_be_exported_by_torch(head):
    with pytest.raises(Exception, match="data-dependent"):
        torch.export.export(Probabilities(head), (torch.randn(5, 4),))
