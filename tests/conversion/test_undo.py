"""Changes that fail half-way leave the model as it was."""

from __future__ import annotations

import copy

import pytest
import torch
from patterns.architectures import Mixed
from torch import Tensor, nn
from zoo.checks import Fingerprint

import convert.surgery.collapsing
import convert.surgery.converting
from bensemble import ConversionError, prune
from convert import bayesify, to_deterministic

from .networks import TextModel, small


@pytest.mark.parametrize("survived", [0, 1, 3])
def test_a_conversion_that_fails_half_way_leaves_the_model_as_it_was(
    monkeypatch: pytest.MonkeyPatch, survived: int
) -> None:
    model = TextModel()
    model.register_forward_hook(lambda module, args, output: output)
    before, changed = Fingerprint(model), []
    make_bayesian = convert.surgery.converting.make_bayesian

    def fail_later(module: nn.Module, *args: object) -> nn.Module:
        layer = make_bayesian(module, *args)  # type: ignore[arg-type]
        changed.append(module)
        if len(changed) > survived:
            raise KeyboardInterrupt
        return layer

    monkeypatch.setattr(convert.surgery.converting, "make_bayesian", fail_later)
    with pytest.raises(KeyboardInterrupt):
        bayesify(model, inplace=True)
    assert len(changed) == survived + 1
    before.compare(model, "failed conversion", identity=True)
    monkeypatch.undo()
    assert bayesify(model, inplace=True)(torch.tensor([[1, 2, 3, 4, 5]])).shape == (1, 5, 3)


class Stubborn(nn.Module):
    """Refuses to change its class."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight

    @property
    def __class__(self) -> type:
        return Stubborn

    @__class__.setter
    def __class__(self, value: type) -> None:
        raise PermissionError(f"{value.__name__} is not wanted here")


class OwnBuffers(nn.Module):
    """Insists that nobody adds buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4))

    def register_buffer(self, *args: object, **kwargs: object) -> None:
        raise PermissionError("no buffers")

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


def test_the_tensors_of_a_posterior_need_no_leave_of_the_module() -> None:
    model = OwnBuffers()
    bnn = bayesify(model, prior="pretrained")
    prune(bnn, sparsity=0.5)
    assert set(bnn.state_dict()) == {f"weight_{part}" for part in ("mu", "rho", "mask", "prior_sigma", "prior_mean")}
    again = bayesify(model, prior="pretrained")
    again.load_state_dict(bnn.state_dict())
    assert torch.equal(again.weight_mask, bnn.weight_mask)


def test_a_module_that_refuses_in_the_middle_leaves_the_model_as_it_was() -> None:
    model = nn.Sequential(nn.Linear(4, 4), nn.GRU(4, 4), Stubborn(), nn.Linear(4, 4))
    before = Fingerprint(model)
    with pytest.raises(PermissionError, match="Stubborn is not wanted here"):
        bayesify(model, inplace=True, prior="pretrained")
    before.compare(model, "failed conversion", identity=True)


@pytest.mark.parametrize("asked", [{}, {"sparsity": 0.5}, {"sample": True}], ids=str)
def test_a_way_back_that_fails_half_way_leaves_the_model_as_it_was(
    monkeypatch: pytest.MonkeyPatch, asked: dict
) -> None:
    bnn = bayesify(Mixed())
    before, calls = Fingerprint(bnn), []
    make_deterministic = convert.surgery.collapsing.make_deterministic

    def fail_later(layer: nn.Module, values: dict) -> nn.Module:
        module = make_deterministic(layer, values)  # type: ignore[arg-type]
        calls.append(module)
        if len(calls) > 1:
            raise RuntimeError("no more")
        return module

    monkeypatch.setattr(convert.surgery.collapsing, "make_deterministic", fail_later)
    with pytest.raises(RuntimeError, match="no more"):
        to_deterministic(bnn, inplace=True, **asked)
    before.compare(bnn, "failed way back", identity=True)


def test_a_function_that_fails_is_asked_before_anything_changes() -> None:
    model = small()
    before = Fingerprint(model)

    def choose(name: str, weight: Tensor) -> float:
        if name == "3.bias":
            raise LookupError(name)
        return 0.1

    for argument in ("init_sigma", "prior"):
        with pytest.raises((LookupError, TypeError)):
            bayesify(model, inplace=True, **{argument: choose})
    before.compare(model, "failed function", identity=True)


def test_a_model_that_cannot_be_copied_can_be_converted_in_place() -> None:
    model = small()
    model.lock = (item for item in ())  # generators refuse deepcopy
    with pytest.raises(ConversionError, match=r"Sequential cannot be copied .*; pass inplace=True"):
        bayesify(model)
    assert bayesify(model, inplace=True) is model
    assert copy.copy(model.lock is not None)
