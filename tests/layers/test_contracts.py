"""Every registered layer type keeps every contract. A type registered later is covered without another test."""

import importlib.util

import pytest
import torch

from bensemble.basis import Basis
from bensemble.layers import BayesianConv2d, BayesianLinear, registered_types
from bensemble.testing import CONTRACTS, check_layer

from .examples import input_for, make, types

STATISTICAL = ("noise", "samples")
#: Types with enough samples to show one sigma that is 10 % off; the others share the code that draws, and get fewer.
SAMPLED_MOST = ("Linear", "Conv2d", "ConvTranspose1d")
#: Those that draw thousands of samples are left to `make test`; `make quick` draws them for the variants below.
MARKED = [pytest.param(c, marks=[pytest.mark.slow] if c in STATISTICAL else []) for c in CONTRACTS]
#: The twins of torch.nn's own types have constructors; others are made by converting.
BUILT = [twin for nn_type, twin in registered_types().items() if nn_type.__module__.startswith("torch.nn.")]


def pointwise(inputs, outputs):
    """A 1x1 convolution."""
    return BayesianConv2d(inputs, outputs, 1)


def check(make_layer, contract, **options):
    example = make_layer()
    x = input_for(example.eval())
    check_layer(make_layer, lambda: torch.randn_like(x), contracts=[contract], **options)


@pytest.mark.parametrize("contract", MARKED)
@pytest.mark.parametrize("nn_type", types(), ids=lambda t: t.__name__)
def test_a_converted_layer_keeps(nn_type, contract):
    check(lambda: make(nn_type), contract, num_samples=10_000 if nn_type.__name__ in SAMPLED_MOST else 1_500)


@pytest.mark.parametrize("contract", [c for c in CONTRACTS if c not in STATISTICAL])
@pytest.mark.parametrize("cls", BUILT, ids=lambda t: t.__name__)
def test_a_layer_built_by_its_constructor_keeps(cls, contract):
    check(lambda: make(cls), contract)


@pytest.mark.parametrize("contract", [c for c in CONTRACTS if c != "samples"])
@pytest.mark.parametrize("cls", [BayesianLinear, BayesianConv2d])
@pytest.mark.parametrize("change", ["no bias", "one draw per forward"])
def test_a_variant_keeps(cls, contract, change):
    def make_variant():
        layer = make(cls, bias=change != "no bias")
        if change == "one draw per forward":
            layer.estimator = "weights"
        return layer

    check(make_variant, contract)


@pytest.mark.parametrize("contract", [c for c in CONTRACTS if c != "samples"])
@pytest.mark.parametrize("cls", [BayesianLinear, pointwise])
def test_a_layer_in_a_rotated_basis_keeps(cls, contract):
    def make_rotated():
        torch.manual_seed(0)
        layer = cls(6, 4)
        outer, inner = (torch.linalg.qr(torch.randn(n, n))[0] for n in (4, 6))
        for posterior in layer.posteriors():
            posterior.set_basis(Basis(outer, inner if posterior.name == "weight" else None))
        return layer

    shape = (5, 6, 3, 2) if cls is pointwise else (5, 6)
    check_layer(make_rotated, lambda: torch.randn(shape), contracts=[contract])


def test_the_types_of_this_package_are_all_under_test():
    names = {nn_type.__name__ for nn_type in types()}
    dimensions = ("1d", "2d", "3d")
    assert names >= {"Linear", *(f"Conv{d}" for d in dimensions), *(f"ConvTranspose{d}" for d in dimensions)}


@pytest.mark.skipif(importlib.util.find_spec("transformers") is None, reason="transformers is not installed")
def test_hugging_face_conv1d_is_under_test():
    assert "Conv1D" in {nn_type.__name__ for nn_type in types()}
