"""The layers of random networks that have no positions of their own: matrices, convolutions, norms."""

from __future__ import annotations

import warnings

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from torch.nn.utils import parametrizations

from .recipes import CONVOLUTIONS, Layout

__all__ = ["ACTIVATIONS", "make_convolution", "make_matrix", "make_norm"]

ACTIVATIONS = {"relu": nn.ReLU, "gelu": nn.GELU, "silu": nn.SiLU, "tanh": nn.Tanh, "prelu": nn.PReLU}


def make_matrix(kind: str, given: int, width: int, bias: bool) -> nn.Module:
    """A layer from ``given`` to ``width`` features along the last axis."""
    if kind in _OWN:
        return _OWN[kind](given, width, bias)
    if kind == "bilinear":
        return Squared(given, width, bias)
    linear = nn.Linear(given, width, bias)
    if kind == "old_weight_norm":
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # it is deprecated, and in every older network
            return nn.utils.weight_norm(linear)
    wrap = {
        "weight_norm": parametrizations.weight_norm,
        "spectral_norm": parametrizations.spectral_norm,
        "orthogonal": parametrizations.orthogonal,
    }.get(kind)
    return linear if wrap is None else wrap(linear)


class Functional(nn.Module):
    """Raw Parameters in ``F.linear``."""

    def __init__(self, given: int, width: int, bias: bool) -> None:
        super().__init__()
        self.matrix = nn.Parameter(torch.randn(width, given) / given**0.5)
        self.shift = nn.Parameter(torch.randn(width)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.matrix, self.shift)


class Experts(nn.Module):
    """Three matrices in one Parameter, mixed by what the input says."""

    def __init__(self, given: int, width: int, bias: bool) -> None:
        super().__init__()
        self.router = nn.Linear(given, 3, bias)
        self.experts = nn.Parameter(torch.randn(3, width, given) / given**0.5)

    def forward(self, x: Tensor) -> Tensor:
        shares = self.router(x).softmax(-1)
        return torch.einsum("...e,eoi,...i->...o", shares, self.experts, x)


class Scaled(nn.Linear):
    """A subclass with a forward of its own."""

    def __init__(self, given: int, width: int, bias: bool) -> None:
        super().__init__(given, width, bias)
        self.gain = nn.Parameter(torch.rand(width) + 0.5)

    def forward(self, x: Tensor) -> Tensor:
        return self.gain * F.linear(x, self.weight, self.bias)


class Lists(nn.Module):
    """Matrices in a ParameterList."""

    def __init__(self, given: int, width: int, bias: bool) -> None:
        super().__init__()
        self.matrices = nn.ParameterList([torch.randn(given, width) / given**0.5, torch.randn(width, width) / 2])
        self.shift = nn.Parameter(torch.randn(width)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        x = x @ self.matrices[0] @ self.matrices[1]
        return x if self.shift is None else x + self.shift


class Tied(nn.Module):
    """Two Linears on one Parameter."""

    def __init__(self, given: int, width: int, bias: bool) -> None:
        super().__init__()
        self.one, self.other = nn.Linear(given, width, bias), nn.Linear(given, width, bias)
        self.other.weight = self.one.weight

    def forward(self, x: Tensor) -> Tensor:
        return self.other(torch.tanh(self.one(x)))


class Autoencoder(nn.Module):
    """A Linear, and its transposed weight on the way out."""

    def __init__(self, given: int, width: int, bias: bool) -> None:
        super().__init__()
        self.encode = nn.Linear(given, width, bias)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(torch.tanh(self.encode(x)), self.encode.weight.t())


class Squared(nn.Bilinear):
    """A bilinear form of the input with itself."""

    def __init__(self, given: int, width: int, bias: bool) -> None:
        super().__init__(given, given, width, bias)

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x, torch.tanh(x))


_OWN = {
    "functional": Functional,
    "experts": Experts,
    "subclass": Scaled,
    "parameter_list": Lists,
    "tied": Tied,
    "autoencoder": Autoencoder,
}


def make_convolution(kind: str, layout: Layout, width: int, bias: bool) -> nn.Module:
    """A layer on maps, of any kind in CONVOLUTIONS."""
    given, flat = layout.width, layout.kind == "signal"
    assert kind in CONVOLUTIONS
    if kind == "transposed":
        return (nn.ConvTranspose1d if flat else nn.ConvTranspose2d)(given, width, 3, stride=2, padding=1, bias=bias)
    if kind == "functional_conv":
        return FunctionalConv(given, width, flat, bias)
    if kind == "standardized_conv":
        return (Standardized1d if flat else Standardized2d)(given, width, 3, padding=1, bias=bias)
    make = nn.Conv1d if flat else nn.Conv2d
    options = {
        "pointwise": {"kernel_size": 1, "padding": 0},
        "grouped": {"groups": 2},
        "depthwise": {"groups": given},
        "dilated": {"dilation": 2, "padding": 2},
        "circular": {"padding_mode": "circular"},
        "strided": {"stride": 2},
    }.get(kind, {})
    layer = make(given, width, **{"kernel_size": 3, "padding": 1, "bias": bias, **options})
    return parametrizations.weight_norm(layer) if kind == "weight_norm_conv" else layer


class FunctionalConv(nn.Module):
    """Raw Parameters in ``F.conv1d`` or ``F.conv2d``."""

    def __init__(self, given: int, width: int, flat: bool, bias: bool) -> None:
        super().__init__()
        self.flat = flat
        self.kernel = nn.Parameter(torch.randn(width, given, *([3] if flat else [3, 3])) / given**0.5)
        self.shift = nn.Parameter(torch.randn(width)) if bias else None

    def forward(self, x: Tensor) -> Tensor:
        if self.flat:
            return F.conv1d(x, self.kernel, self.shift, padding=1)
        return F.conv2d(x, self.kernel, self.shift, padding=1)


def _standardized(weight: Tensor) -> Tensor:
    rows = weight.flatten(1)
    rows = (rows - rows.mean(1, keepdim=True)) / (rows.std(1, keepdim=True) + 1e-2)
    return rows.reshape(weight.shape) * rows.shape[1] ** -0.5


class Standardized1d(nn.Conv1d):
    """A convolution that standardizes its weight in every forward."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv1d(x, _standardized(self.weight), self.bias, padding=self.padding)


class Standardized2d(nn.Conv2d):
    """A convolution that standardizes its weight in every forward."""

    def forward(self, x: Tensor) -> Tensor:
        return F.conv2d(x, _standardized(self.weight), self.bias, padding=self.padding)


def make_norm(kind: str, layout: Layout) -> nn.Module:
    """A norm of the features of a layout."""
    if kind == "group" and layout.kind != "sequence":
        return nn.GroupNorm(min(2, layout.width // 2), layout.width)  # one element alone would be rounding and no more
    if kind == "group":
        return nn.RMSNorm(layout.width)
    if kind == "batch":
        batch_norm = {"signal": nn.BatchNorm1d, "image": nn.BatchNorm2d, "vector": nn.BatchNorm1d}
        return batch_norm.get(layout.kind, OverTime)(layout.width)
    return nn.GroupNorm(1, layout.width) if layout.is_map else nn.LayerNorm(layout.width)


class OverTime(nn.Module):
    """BatchNorm1d of a sequence."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.norm = nn.BatchNorm1d(width)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(x.transpose(1, 2)).transpose(1, 2)
