"""check_noise tells noise that is lost from weights that the network ignores."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bensemble import ConversionError, InvalidTypeError, InvalidValueError, named_posteriors
from convert import bayesify, check_noise

from .networks import TextModel, tokens


class Attention(nn.Module):
    """One head; softmax cancels the bias of its keys."""

    def __init__(self) -> None:
        super().__init__()
        self.query, self.key, self.value = (nn.Linear(4, 4) for _ in range(3))

    def forward(self, x: Tensor) -> Tensor:
        return (self.query(x) @ self.key(x).mT).softmax(-1) @ self.value(x)


class Rounded(nn.Linear):
    """A coarse output, as of a hard decision."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).div(0.5).round()


def one(reports: Any, name: str) -> Any:
    (row,) = [row for row in reports.rows if row.name == name]
    return row


def bypassed(bnn: nn.Module) -> None:
    bnn[0].forward = lambda x: F.linear(x, bnn[0].w_mu, bnn[0].b_mu)


def pruned(bnn: nn.Module) -> None:
    weight = dict(named_posteriors(bnn))["0.weight"]
    weight.set_mask(torch.zeros_like(weight.mu))


def certain(bnn: nn.Module) -> None:
    bnn[0].w_rho.data.fill_(-200.0)


def left_out(bnn: nn.Module) -> None:
    bnn.forward = lambda x: bnn[1](x)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (bypassed, "depends on this weight, and its noise is bypassed"),
        (pruned, "every weight is pruned"),
        (certain, "sigma is 0"),
        (left_out, "its layer is not called"),
    ],
)
def test_noise_that_does_not_arrive_has_a_reason(change: Callable[[nn.Module], None], match: str) -> None:
    bnn = bayesify(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2)))
    assert check_noise(bnn, torch.randn(4, 3))
    change(bnn)
    report = check_noise(bnn, torch.randn(4, 3))
    row = one(report, "0.weight")
    assert not report
    assert row in report.silent
    assert match in row.reason
    assert f"0.weight: {row.reason}" in str(report)
    assert one(report, "1.weight").reaches_output


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_a_weight_that_the_network_ignores_is_listed_and_no_failure(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    report = check_noise(bayesify(Attention().to(dtype)), torch.randn(2, 5, 4, dtype=dtype))
    assert report, report
    (row,) = report.ignored
    assert row.name == "key.bias"
    assert not row.reaches_output
    assert "the output does not depend on this weight" in row.reason
    assert str(report).startswith("The noise of 5 of 6 posteriors reaches the output.\n  key.bias: ")


def test_noise_below_the_precision_of_the_output_is_not_lost() -> None:
    torch.manual_seed(0)
    model = Rounded(3, 2, bias=False)
    nn.init.constant_(model.weight, 0.1)
    bnn = bayesify(model)
    report = check_noise(bnn, torch.ones(1, 3))
    assert report
    assert "too small for the precision of the output" in report.ignored[0].reason


def test_tied_weights_move_everywhere_and_the_model_is_left_alone() -> None:
    model = nn.Sequential(nn.Embedding(9, 6), nn.Tanh(), nn.Linear(6, 9, bias=False))
    model[2].weight = model[0].weight
    bnn = bayesify(model).train()
    before = {name: value.clone() for name, value in bnn.state_dict().items()}
    x, state = torch.randint(9, (2, 4)), torch.get_rng_state()
    report = check_noise(bnn, x)
    assert [(row.name, row.reaches_output) for row in report.rows] == [("0.weight", True)]
    assert all(module.training for module in bnn.modules())
    assert torch.equal(torch.get_rng_state(), state)
    for name, value in bnn.state_dict().items():
        assert torch.equal(value, before[name])


def test_means_are_put_back_after_they_were_moved() -> None:
    bnn = bayesify(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 2)))
    bypassed(bnn)
    before = {name: value.clone() for name, value in bnn.state_dict().items()}
    assert not check_noise(bnn, torch.randn(4, 3))
    for name, value in bnn.state_dict().items():
        assert torch.equal(value, before[name])


def test_each_posterior_has_a_row() -> None:
    bnn = bayesify(TextModel(), example_inputs=tokens())
    report = check_noise(bnn, tokens())
    assert [row.name for row in report.rows] == [name for name, _ in named_posteriors(bnn)]
    assert "posteriors reaches the output" in str(report)


class Ranking(nn.Linear):
    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x).argmax(-1)


def test_refusals() -> None:
    with pytest.raises(InvalidTypeError, match="check_noise"):
        check_noise("model", torch.zeros(1))  # type: ignore[arg-type]
    with pytest.raises(ConversionError, match="check_noise: Linear has no Bayesian layers; call bayesify first"):
        check_noise(nn.Linear(2, 2), torch.zeros(1, 2))
    with pytest.raises(InvalidValueError, match="check_noise: the model rejects example_inputs"):
        check_noise(bayesify(nn.Linear(2, 2)), torch.zeros(1, 3))
    with pytest.raises(InvalidValueError, match="holds no floating-point tensor"):
        check_noise(bayesify(Ranking(2, 2)), torch.zeros(1, 2))


@pytest.mark.parametrize("patch", [lambda old: lambda x: old(x) * 2, lambda old: lambda x: old(x).clone()])
def test_a_forward_on_the_instance_that_runs_the_source_is_told(patch) -> None:
    """A copy of a function keeps what it holds: here the layer of the model that was converted."""
    model = nn.Sequential(nn.Linear(3, 3), nn.ReLU(), nn.Linear(3, 2)).eval()
    model[0].forward = patch(model[0].forward)
    report = check_noise(bayesify(model), torch.randn(4, 3))
    assert [row.name for row in report.silent] == ["0.weight", "0.bias"]
    assert "no operation reads this weight; a forward set on the layer itself runs" in one(report, "0.weight").reason
    assert not report


class Holding(nn.Module):
    """Calls a layer through a function that holds it."""

    def __init__(self, layer: nn.Module) -> None:
        super().__init__()
        self.layer, self.call, self.head = layer, lambda x: layer(x), nn.Linear(3, 2)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.call(x))


def test_a_layer_that_runs_through_a_function_of_the_source_is_told() -> None:
    report = check_noise(bayesify(Holding(nn.Linear(3, 3))), torch.randn(4, 3))
    assert not report
    assert "its layer is not called" in one(report, "layer.weight").reason
