"""Positions count by what they do to the output."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

from convert import repair
from convert.repairing.layers import repairable_layers
from convert.repairing.weighing import position_weights

from .pruned import MIXING, error, without


class Pooling(nn.Module):
    """Averages the positions whose first feature is not 0."""

    def __init__(self):
        super().__init__()
        self.first, self.second, self.head = nn.Linear(8, 16), nn.Linear(16, 6), nn.Linear(6, 3)

    def forward(self, x):
        real = (x[..., :1] != 0).to(x.dtype)
        return self.head((self.second(self.first(x).relu()) * real).sum(1) / real.sum(1))


def padded(filling, seed=0):
    generator = torch.Generator().manual_seed(seed)
    x = torch.randn(64, 5, 8, generator=generator) @ MIXING
    x[:, 3:] = filling
    x[:, 3:, 0] = 0
    return x.double()


def test_padding_does_not_count():
    model = Pooling().double()
    pruned = without(model, 0.5)
    ones, tens = (
        repair(pruned, model, [padded(filling, seed) for seed in range(10)], damping=0.01) for filling in (1.0, 10.0)
    )
    for one, ten in zip(ones.parameters(), tens.parameters(), strict=True):
        assert_close(one, ten)
    assert error(ones, model, [padded(1.0, 11)]) < error(pruned, model, [padded(1.0, 11)])


def test_a_position_counts_as_much_as_the_output_follows_it():
    class Weighted(Pooling):
        def forward(self, x):
            return self.second(self.first(x)).mul(torch.tensor([1.0, 3.0, 0.0])[:, None]).sum(1)

    model, x = Weighted(), torch.randn(4, 3, 8)
    layers = [layer for layer in repairable_layers(model) if layer.name == "second.weight"]
    with torch.no_grad():
        ((found,),) = position_weights(model, lambda: model(x), layers).values()
    assert_close(found[:, 1], 3 * found[:, 0])
    assert (found[:, 2] == 0).all()
    assert found.mean() == pytest.approx(1)


@pytest.mark.parametrize("output", [lambda y: y.detach(), lambda y: y.argmax(-1), lambda y: y.new_zeros(2)])
def test_without_a_gradient_all_positions_count_alike(output):
    class Silent(Pooling):
        def forward(self, x):
            return output(self.first(x))

    model, x = Silent(), torch.randn(4, 3, 8)
    layers = [layer for layer in repairable_layers(model) if layer.name == "first.weight"]
    assert position_weights(model, lambda: model(x), layers) == {"first.weight": [None]}
