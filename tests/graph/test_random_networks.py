"""Random small networks: never another output, never an error, and as few channels as trying all choices leaves."""

from __future__ import annotations

import unittest

import torch
from hypothesis import given, settings

from bensemble.posteriors import named_posteriors
from convert import bayesify, to_deterministic
from convert.graph.compaction import channel_groups, compact

from .programs import WITHOUT_ORACLE, Network, Program, fewest_channels, programs

#: Each removed constant may ask for a bias where there was none.
MOST_NEW_BIASES = 20


@settings(max_examples=30)
@given(programs(more=WITHOUT_ORACLE, most_steps=9))
def test_outputs_do_not_change(program: Program):
    network = Network(program).eval()
    with unittest.TestCase().assertNoLogs("bensemble.compact", "WARNING"):  # nothing is given up
        small = compact(network, torch.randn(2, 2, 6, 6))
    x = torch.randn(3, 2, 9, 7)
    torch.testing.assert_close(small(x), network(x))
    assert type(small) is Network or any(step.kind == "shuffle" for step in program.steps)
    assert _parameters(small) <= _parameters(network) + MOST_NEW_BIASES


@settings(max_examples=30)
@given(programs())
def test_as_few_channels_as_the_oracle(program: Program):
    network = Network(program).eval()
    x = torch.randn(2, 2, 6, 6)
    small = compact(network, x)
    assert sum(value.shape[1] for value in small.values(x)) == fewest_channels(network)


def _parameters(model: torch.nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())


class Untraceable(Network):
    """Only torch.export gets past its question."""

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        if x.shape[0] > 1000:
            raise ValueError("too many examples")
        return super().forward(x)


@settings(max_examples=6)
@given(programs(more=WITHOUT_ORACLE, most_steps=9))
def test_exported_graphs_lose_as_much_as_traced_ones(program: Program):
    network, other = Network(program).eval(), Untraceable(program).eval()
    x = torch.randn(2, 2, 6, 6)
    with unittest.TestCase().assertNoLogs("bensemble.compact", "WARNING"):
        small, expected = compact(other, x), compact(network, x)
    x = torch.randn(3, 2, 9, 7)
    torch.testing.assert_close(small(x), network(x))
    assert _parameters(small) == _parameters(expected)


@settings(max_examples=10)
@given(programs(more=WITHOUT_ORACLE, most_steps=9))
def test_channels_that_go_together_are_found_and_cut_out(program: Program):
    network, x = Network(program).eval(), torch.randn(2, 2, 6, 6)
    bnn = bayesify(network, example_inputs=x)
    groups = channel_groups(bnn, x)
    assert not groups.notes
    pruned = to_deterministic(bnn, sparsity={"*": 0.5}, granularity=groups)
    small = compact(pruned, x)
    x = torch.randn(3, 2, 9, 7)
    torch.testing.assert_close(small(x), pruned(x))
    for name, posterior in named_posteriors(bnn):  # what stays of each layer makes something
        if name in groups.made:
            assert bool(pruned.get_parameter(name).any()) or not bool(posterior.mean().any())
