"""Sizes stay open where opt_einsum, which not every installation has, chooses the order of an einsum."""

from __future__ import annotations

import math
from types import SimpleNamespace

import pytest
import torch
from torch import nn

from convert.graph.capture import capture, left_to_right

EINSUM = torch.backends.opt_einsum


class Experts(nn.Module):
    """Three matrices mixed by the input: an einsum of three operands."""

    def __init__(self):
        super().__init__()
        self.matrices = nn.Parameter(torch.randn(3, 2, 4))

    def forward(self, x):
        return torch.einsum("be,eoi,bi->bo", x[:, :3].softmax(-1), self.matrices, x)


@pytest.fixture
def opt_einsum(monkeypatch):
    """What torch sees of opt_einsum: it takes the sizes of all operands as numbers, and returns pairs to contract."""

    def contract_path(equation, *operands, optimize):
        assert all(int(math.prod(map(int, operand.shape))) > 0 for operand in operands)
        return [(0, 1)] * (len(operands) - 1), None

    monkeypatch.setattr(EINSUM.m, "_opt_einsum", SimpleNamespace(contract_path=contract_path))
    monkeypatch.setattr(EINSUM.m, "is_available", lambda: True)
    monkeypatch.setattr(EINSUM.m, "strategy", "auto")
    monkeypatch.setattr(EINSUM.m, "enabled", True)


@pytest.mark.usefixtures("opt_einsum")
def test_a_captured_graph_runs_at_other_batch_sizes():
    torch.manual_seed(0)
    model, x = Experts().eval(), torch.randn(6, 4)
    with torch.no_grad():
        graph = capture("export", model, x, model(x), "batch").module
        torch.testing.assert_close(graph(x[:2]), model(x[:2]))
    assert EINSUM.enabled


@pytest.mark.usefixtures("opt_einsum")
def test_the_choice_of_the_user_is_put_back():
    with left_to_right():
        assert not EINSUM.enabled
    assert EINSUM.enabled
    EINSUM.m.enabled = False
    with left_to_right():
        assert not EINSUM.enabled
    assert not EINSUM.enabled
