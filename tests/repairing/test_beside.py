"""A layer makes up for what was lost in what is added to its output."""

import pytest
import torch
from torch import nn

from convert import repair

from .pruned import ROWS

WAYS = {
    "plain": lambda self, x: self.first(x) + self.second(x),
    "the other way round": lambda self, x: self.second(x) + self.first(x),
    "in place": lambda self, x: self.first(x).add_(self.second(x)),
    "overwritten": lambda self, x: self.second(x).add_(self.first(x)),
    "through dropout": lambda self, x: self.first(x) + self.dropout(self.second(x)),
    "through a norm": lambda self, x: self.first(x) + self.norm(self.second(x)),
    "through both": lambda self, x: torch.add(self.dropout(self.norm(self.second(x))), self.first(x)),
}
OTHERS = {
    "after a nonlinearity": lambda self, x: self.first(x) + self.second(x).relu_(),
    "another shape": lambda self, x: self.first(x)[:, :1] + self.second(x),
    "joined": lambda self, x: torch.cat([self.first(x), self.second(x)], 1),
    "a number": lambda self, x: self.first(x).sum() + (self.second(x) + 1.0),
}


class Adding(nn.Module):
    def __init__(self, way):
        super().__init__()
        self.first, self.second = nn.Linear(8, 4), nn.Linear(8, 4)
        self.dropout, self.norm, self.way = nn.Dropout(0.5), nn.BatchNorm1d(4), way
        self.norm.running_var.uniform_(0.5, 2)

    def forward(self, x):
        return self.way(self, x)


def damaged(way):
    """A network and the same without an output of its first layer, and one weight of another output of the second."""
    model, pruned = Adding(way).eval(), Adding(way).eval()
    nn.init.constant_(model.norm.weight, 0.7)
    pruned.load_state_dict(model.state_dict())
    pruned.first.weight.data[0], pruned.second.weight.data[1, 2] = 0, 0
    return model.double(), pruned.double()


@pytest.mark.parametrize("way", WAYS)
def test_the_sum_is_what_a_layer_is_solved_for(way):
    model, pruned = damaged(WAYS[way])
    batches = [x.double() for x in ROWS]
    repaired = repair(pruned, model, batches, damping=0.0)
    off = (repaired(batches[0]) - model(batches[0])).abs().amax(0)
    assert off[0] < 1e-8 < 1e-3 < off[1]  # the second layer does what an output of the first one did
    assert (repaired.first.weight[0] == 0).all()


@pytest.mark.parametrize("way", OTHERS)
def test_where_nothing_is_added_a_layer_keeps_its_own_outputs(way):
    model, pruned = damaged(OTHERS[way])
    batches = [x.double() for x in ROWS]
    repaired = repair(pruned, model, batches, damping=0.0)
    torch.testing.assert_close(repaired.second.weight[0], model.second.weight[0])
