"""Weights that a hook or a parametrization computes before every forward."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn
from torch.nn.utils import parametrizations, parametrize, prune

from .table import pattern

NO_PICKLE = "torch refuses to pickle parametrized modules"


@pattern("new weight_norm: magnitude and direction behind a parametrization")
def weight_norm():
    model = nn.Sequential(parametrizations.weight_norm(nn.Linear(6, 4)), nn.Linear(4, 2))
    return model, (torch.randn(3, 6),)


@pattern("new weight_norm over all axes of a convolution")
def weight_norm_conv():
    return nn.Sequential(parametrizations.weight_norm(nn.Conv2d(3, 4, 3), dim=None)), (torch.randn(2, 3, 5, 5),)


@pattern("legacy weight_norm: a hook writes the weight as a plain tensor, which deepcopy refuses")
def weight_norm_legacy():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        model = nn.Sequential(nn.utils.weight_norm(nn.Conv1d(3, 4, 3)), nn.utils.weight_norm(nn.Linear(4, 2)))
    return model, (torch.randn(2, 3, 6),)


@pattern("new spectral_norm: power iteration moves buffers in train mode")
def spectral_norm():
    return nn.Sequential(parametrizations.spectral_norm(nn.Linear(6, 4)), nn.Linear(4, 2)), (torch.randn(3, 6),)


@pattern("legacy spectral_norm: weight_orig, u and v, and a hook")
def spectral_norm_legacy():
    return nn.Sequential(nn.utils.spectral_norm(nn.Conv2d(3, 4, 3))), (torch.randn(2, 3, 5, 5),)


@pattern("an orthogonal matrix from a matrix exponential")
def orthogonal():
    return nn.Sequential(parametrizations.orthogonal(nn.Linear(4, 4), orthogonal_map="matrix_exp")), (
        torch.randn(3, 4),
    )


@pattern("Householder reflections: only a triangle of the stored matrix matters")
def orthogonal_householder():
    model = nn.Sequential(parametrizations.orthogonal(nn.Linear(6, 4), orthogonal_map="householder"))
    return model, (torch.randn(3, 6),)


class Symmetric(nn.Module):
    """The upper triangle, mirrored."""

    def forward(self, x: Tensor) -> Tensor:
        return x.triu() + x.triu(1).mT

    def right_inverse(self, x: Tensor) -> Tensor:
        return x.triu()


class Gained(nn.Module):
    """A gain with a weight of its own inside a parametrization."""

    def __init__(self) -> None:
        super().__init__()
        self.mix = nn.Linear(4, 4, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return x + 0.1 * self.mix(x)


@pattern("a chain of parametrizations, one with a Linear inside")
def parametrization_chain():
    layer = parametrize.register_parametrization(nn.Linear(4, 4), "weight", Symmetric())
    parametrize.register_parametrization(layer, "weight", Gained())
    return nn.Sequential(layer, nn.Linear(4, 2)), (torch.randn(3, 4),)


class Cached(nn.Module):
    """Reads a parametrized weight twice within the cache."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = parametrize.register_parametrization(nn.Linear(4, 4), "weight", Symmetric())

    def forward(self, x: Tensor) -> Tensor:
        with parametrize.cached():
            return self.linear(self.linear(x))


@pattern("parametrize.cached keeps the computed weight for the whole forward")
def parametrization_cached():
    return Cached(), (torch.randn(3, 4),)


@pattern("torch pruning: weight_orig with a mask in a buffer, and a hook")
def pruned():
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Conv1d(1, 2, 3))
    prune.l1_unstructured(model[0], "weight", 0.5)
    prune.random_unstructured(model[0], "bias", 0.4)
    prune.ln_structured(model[2], "weight", 0.5, n=2, dim=0)
    return nn.Sequential(model[0], nn.Unflatten(-1, (1, 5)), model[2]), (torch.randn(3, 6),)


@pattern("global pruning, twice, so that masks stack in a container")
def pruned_twice():
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), nn.Linear(5, 3))
    for _ in range(2):
        prune.global_unstructured([(model[0], "weight"), (model[2], "weight")], prune.L1Unstructured, amount=0.3)
    return model, (torch.randn(3, 6),)


class DemodulatedConv(nn.Module):
    """Modulates its weight by a style, per example (StyleGAN2)."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(1, 4, 3, 3, 3))
        self.style = nn.Linear(2, 3)

    def forward(self, x: Tensor, style: Tensor) -> Tensor:
        weight = self.weight * self.style(style).view(len(x), 1, 3, 1, 1)
        weight = weight * weight.square().sum((2, 3, 4), keepdim=True).add(1e-8).rsqrt()
        out = nn.functional.conv2d(x.reshape(1, -1, *x.shape[2:]), weight.flatten(0, 1), groups=len(x))
        return out.view(len(x), 4, *out.shape[2:])


@pattern("a weight per example, by a product with the data, then a grouped convolution")
def modulated_conv():
    return DemodulatedConv(), (torch.randn(2, 3, 5, 5), torch.randn(2, 2))
