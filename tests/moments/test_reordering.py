"""Max pooling moves before the activation that it alone reads, and nothing else moves."""

import pytest
import torch
import torch.nn.functional as F
from torch import nn

from convert.graph.capture import undisturbed
from convert.graph.moments.reordering import pool_first


def operations(module: nn.Module, x: torch.Tensor) -> tuple[list[str], torch.Tensor]:
    """The exported graph's operations after the pass, and what it computes."""
    with undisturbed():
        graph = torch.export.export(module.eval(), (x,)).run_decompositions({}).module(check_guards=False)
    pool_first(graph.graph)
    graph.graph.lint()
    graph.recompile()
    names = [node.target._schema.name for node in graph.graph.nodes if hasattr(node.target, "_schema")]
    return names, graph(x)


class Twice(nn.Module):
    def forward(self, x):
        y = x.relu()
        return F.max_pool2d(y, 2).sum() + y.sum()


@pytest.mark.parametrize(
    ("module", "expected"),
    [
        (nn.Sequential(nn.ReLU(), nn.MaxPool2d(3, 2, 1)), ["aten::max_pool2d", "aten::relu"]),
        (nn.Sequential(nn.Tanh(), nn.MaxPool2d(2), nn.Flatten()), ["aten::max_pool2d", "aten::tanh"]),
        (nn.Sequential(nn.ReLU(), nn.AvgPool2d(2)), ["aten::relu", "aten::avg_pool2d"]),
        (nn.Sequential(nn.GELU(), nn.MaxPool2d(2)), ["aten::gelu", "aten::max_pool2d"]),
        (Twice(), ["aten::relu", "aten::max_pool2d"]),
    ],
)
def test_only_what_may_move_moves(module, expected):
    x = torch.randn(2, 3, 8, 8)
    names, found = operations(module, x)
    assert [name for name in names if name in {*expected}] == expected
    assert torch.equal(found, module(x))
