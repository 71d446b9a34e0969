"""How far a file may be from a model that rounding itself takes far from its exact outputs."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from test_inspection import Fixed
from torch import nn

from bensemble.errors import VerificationError
from convert import export_onnx
from convert.onnx.inputs.trials import Trial
from convert.onnx.rounding_errors import in_float64, rounding_errors
from convert.onnx.verification import compare


class Cancelling(nn.Module):
    """The difference of two long sums that are nearly equal: five digits of the result are lost."""

    def __init__(self) -> None:
        super().__init__()
        torch.manual_seed(0)
        self.one, self.other = nn.Linear(512, 3), nn.Linear(512, 3)
        with torch.no_grad():
            self.other.weight.copy_(self.one.weight + 1e-5 * torch.randn(3, 512))

    def forward(self, x):
        return self.one(x.square()) - self.other(x.square())


def cancelling():
    model = Cancelling().eval()
    with torch.no_grad():
        model.other.bias.copy_(model.one.bias)
    return model, torch.linspace(1, 4, 2 * 512).reshape(2, 512)


@pytest.mark.slow
def test_a_network_that_loses_digits_is_exported(tmp_path):
    model, x = cancelling()
    report = export_onnx(model, tmp_path / "model.onnx", x)
    assert 1e-5 < report.relative_error <= report.tolerance <= 1e-2


@pytest.mark.slow
def test_a_network_that_loses_none_is_held_to_its_precision(tmp_path):
    torch.manual_seed(0)
    report = export_onnx(nn.Linear(4, 2).eval(), tmp_path / "model.onnx", torch.randn(2, 4))
    assert report.tolerance == 1e-5


@pytest.mark.parametrize(("rounded", "allowed"), [(0.0, "1e-05"), (1e-5, "1e-04"), (1.0, "1e-02")])
def test_ten_times_the_rounding_is_allowed_up_to_a_hundredth(rounded, allowed):
    expected, bound = torch.tensor([1.0, -0.5]), float(allowed)

    def agreement(error):
        got = Fixed(expected.numpy() + np.float32([error, 0]))
        return compare(got, [Trial((), {"out": expected}, {})], ["y"], 1e-5, None, lambda trial: {"out": rounded})

    assert agreement(0.9 * bound).tolerance == pytest.approx(bound)
    with pytest.raises(VerificationError, match=rf"'y' .* \(allowed {allowed}\)"):
        agreement(1.2 * bound)


def test_rounding_is_the_distance_from_float64():
    model, x = cancelling()
    with torch.no_grad():
        outputs, exact = model(x), cancelling()[0].double()(x.double())
    error = float((outputs.double() - exact).abs().max())
    found = rounding_errors(model, lambda tensors: {"out": model(*tensors)}, (x,), {"out": outputs})
    assert found == {"out": error}
    assert error > 1e-5 * float(outputs.abs().max())


def test_a_model_that_insists_on_float32_has_no_rounding():
    model, x = cancelling()
    outputs = {"out": model(x).detach()}
    assert rounding_errors(model, lambda tensors: {"out": model(tensors[0].float())}, (x,), outputs) == {}


def test_the_model_has_its_own_values_again():
    model = nn.Sequential(nn.Linear(3, 3).bfloat16(), nn.BatchNorm1d(3))
    kept = {name: tensor.clone() for name, tensor in model.state_dict().items()}

    def interrupted():
        with in_float64(model):
            assert {p.dtype for p in model.parameters()} == {torch.float64}
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        interrupted()
    for name, tensor in model.state_dict().items():
        assert tensor.dtype == kept[name].dtype
        assert torch.equal(tensor, kept[name])
