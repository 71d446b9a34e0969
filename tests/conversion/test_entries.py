"""Several example inputs and entry points: what one forward does not reach, other calls do."""

from __future__ import annotations

import pytest
import torch
from torch import nn

import bensemble
from bensemble import InvalidTypeError, InvalidValueError
from convert import bayesify, check_noise, plan


class TwoTower(nn.Module):
    """Encodes in a method of its own; the forward takes one of two branches by the shape of its input."""

    def __init__(self):
        super().__init__()
        self.tower, self.left, self.right, self.head = (nn.Linear(4, 4) for _ in range(4))

    def encode(self, x, scale=1.0):
        return self.tower(x) * scale

    def forward(self, x):
        return self.head(self.left(x) if x.shape[0] > 1 else self.right(x))


ONE, MANY = torch.randn(1, 4), torch.randn(3, 4)


def unreached(found):
    return {row.name for row in found.rows if "not reached" in row.reason}


def test_a_list_of_inputs_is_several_forwards():
    net = TwoTower()
    towers, rights = {"tower.weight", "tower.bias"}, {"right.weight", "right.bias"}
    assert unreached(plan(net, example_inputs=MANY)) == towers | rights
    assert unreached(plan(net, example_inputs=[MANY, ONE])) == towers
    both = plan(net, example_inputs=[MANY, (ONE,)], entry_points={"encode": {"x": ONE, "scale": 2.0}})
    assert not unreached(both)
    assert {row.calls for row in both.rows if row.name == "head.weight"} == {1}


def test_the_reason_says_how_to_reach_it():
    reason = next(row.reason for row in plan(TwoTower(), example_inputs=MANY).rows if row.name == "tower.weight")
    assert "example_inputs=[a, b], entry_points={'encode': x}" in reason


def test_bayesify_and_check_noise_take_the_same_calls():
    calls = {"entry_points": {"encode": [MANY, (ONE, 3.0)]}}
    bnn = bayesify(TwoTower(), example_inputs=[MANY, ONE], **calls)
    assert len(dict(bensemble.named_posteriors(bnn))) == 8
    assert check_noise(bnn, [MANY, ONE], **calls)
    report = check_noise(bnn, MANY)
    assert {row.name for row in report.silent} == {"tower.weight", "tower.bias", "right.weight", "right.bias"}
    assert "not reached by these example inputs" in str(report)


def test_a_last_layer_must_be_last_in_every_forward():
    class Switch(nn.Module):
        def __init__(self):
            super().__init__()
            self.first, self.second = nn.Linear(4, 4), nn.Linear(4, 4)

        def forward(self, x):
            y = self.first(x)
            return y if x.shape[0] > 1 else self.second(y.relu())

    net = Switch()
    assert plan(net, include="first", example_inputs=MANY).last_layer == "first"
    assert plan(net, include="first", example_inputs=[MANY, ONE]).last_layer is None


def test_only_entry_points():
    found = plan(TwoTower(), entry_points={"encode": ONE})
    assert {row.name for row in found.rows if row.is_bayesian} == {"tower.weight", "tower.bias"}
    assert found.last_layer is None


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"entry_points": ["encode"]}, InvalidTypeError, "entry_points must map method names to inputs, got list"),
        (
            {"entry_points": {"encod": ONE}},
            InvalidValueError,
            "got 'encod'; did you mean 'encode'",
        ),
        ({"entry_points": {3: ONE}}, InvalidValueError, "methods of TwoTower, got 3"),
        ({"entry_points": {"encode": []}}, InvalidValueError, r"entry_points\['encode'\] must hold at least one call"),
        ({"example_inputs": []}, InvalidValueError, "example_inputs must hold at least one call, got an empty list"),
        (
            {"entry_points": {"encode": torch.ones(1, 5)}},
            InvalidValueError,
            r"rejects entry_points\['encode'\] .* pass what 'encode' takes",
        ),
        (
            {"example_inputs": [ONE, torch.ones(1, 5)]},
            InvalidValueError,
            r"rejects example_inputs .* its forward",
        ),
    ],
)
@pytest.mark.parametrize("verb", [plan, bayesify])
def test_calls_that_cannot_work_are_refused(verb, arguments, error, message):
    net = TwoTower()
    before = {name: tensor.clone() for name, tensor in net.state_dict().items()}
    with pytest.raises(error, match=f"{verb.__name__}: .*{message}"):
        verb(net, **arguments)
    assert all(torch.equal(tensor, before[name]) for name, tensor in net.state_dict().items())


def test_a_plan_excludes_entry_points():
    net = TwoTower()
    with pytest.raises(InvalidTypeError, match="a plan excludes include, exclude, example_inputs and entry_points"):
        bayesify(net, plan=plan(net), entry_points={"encode": ONE})
