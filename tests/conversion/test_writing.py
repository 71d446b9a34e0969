"""A weight that a forward writes into stays deterministic: the write would miss its sigma."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bensemble import ReadOnlyError
from convert import bayesify, plan

REASON = "a forward writes into it, which would miss its sigma"


class Rescaled(nn.Module):
    """As RWKV in transformers: the matrix is halved for evaluation and doubled for training."""

    def __init__(self) -> None:
        super().__init__()
        self.first, self.second, self.halved = nn.Linear(3, 3), nn.Linear(3, 3), False

    def forward(self, x: Tensor) -> Tensor:
        if self.training == self.halved:
            with torch.no_grad():
                self.write()
            self.halved = not self.training
        x = self.second(self.first(x))
        return x * 2 if self.halved else x

    def write(self) -> None:
        self.second.weight.mul_(2.0 if self.training else 0.5)


class Clamped(Rescaled):
    def write(self) -> None:
        self.second.weight.data.clamp_(-0.1, 0.1)


class Multiplied(Rescaled):
    def write(self) -> None:
        weight = self.second.weight
        weight *= 1.0  # the values alone would not tell


class Assigned(Rescaled):
    def write(self) -> None:
        self.second.weight.data = self.second.weight.data / 2


class Traceable(nn.Module):
    """torch.fx sees the write without example inputs."""

    def __init__(self) -> None:
        super().__init__()
        self.weight, self.other = nn.Parameter(torch.randn(3, 3)), nn.Linear(3, 3)

    def forward(self, x: Tensor) -> Tensor:
        self.weight.data.clamp_(-1.0, 1.0)
        return self.other(F.linear(x, self.weight))


@pytest.mark.parametrize("kind", [Rescaled, Clamped, Multiplied, Assigned])
@pytest.mark.parametrize("include", [None, "second.weight"])
def test_a_probe_sees_the_write(kind: type[Rescaled], include: str | None) -> None:
    model, x = kind().eval(), torch.randn(2, 3)
    before = model.second.weight.detach().clone()
    named = [include, "first", "second"] if include else None
    made = plan(model, example_inputs=x, include=named)
    reasons = {row.name: row.reason for row in made.rows if not row.is_bayesian}
    assert reasons == {"second.weight": REASON, "second.bias": "the weight of its layer stays deterministic"}
    assert torch.equal(model.second.weight, before), "the probe ran on the model itself"
    bnn = bayesify(model, plan=made)
    assert torch.equal(bnn(x), model(x))
    bnn.train()(x).sum().backward()


def test_a_trace_sees_the_write() -> None:
    made = plan(Traceable())
    assert made.source == "fx"
    assert {row.name: row.reason for row in made.rows if row.reason} == {"weight": REASON}


def test_nan_is_no_write() -> None:
    model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3))
    model[0].weight.data[0, 0] = float("nan")
    assert all(row.is_bayesian for row in plan(model, example_inputs=torch.randn(2, 3)).rows)


def test_without_inputs_the_error_names_the_cure() -> None:
    bnn, x = bayesify(Rescaled()), torch.randn(2, 3)
    bnn.eval()(x)
    with pytest.raises(
        ReadOnlyError, match=r"mul_: 'weight' of BayesianLinear .*given example_inputs, bayesify does so itself"
    ):
        bnn.train()(x)
