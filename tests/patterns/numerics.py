"""Dtypes, layouts and shapes."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .table import pattern


def network() -> nn.Sequential:
    return nn.Sequential(nn.Conv2d(3, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(4 * 9, 3))


@pattern("bfloat16")
def bfloat16():
    model = nn.Sequential(nn.Linear(6, 5), nn.ReLU(), StackedRaw()).bfloat16()
    return model, (torch.randn(4, 6, dtype=torch.bfloat16),)


class StackedRaw(nn.Module):
    """A raw matrix."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(5, 3))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


@pattern("float16")
def float16():
    return nn.Sequential(nn.Linear(6, 5), nn.ReLU(), StackedRaw()).half(), (torch.randn(4, 6, dtype=torch.float16),)


@pattern("float64")
def float64():
    return network().double(), (torch.randn(2, 3, 5, 5, dtype=torch.float64),)


class Mixed(nn.Module):
    """Norms and head in float32, the rest in bfloat16."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.norm, self.head = nn.Linear(6, 5).bfloat16(), nn.LayerNorm(5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.head(self.norm(self.body(x.bfloat16()).float()))


@pattern("two dtypes in one model")
def mixed_dtypes():
    return Mixed(), (torch.randn(4, 6),)


@pattern("channels_last weights and inputs")
def channels_last():
    model = nn.Sequential(nn.Conv2d(4, 8, 3), nn.ReLU(), nn.Conv2d(8, 4, 3)).to(memory_format=torch.channels_last)
    return model, (torch.randn(2, 4, 8, 8).contiguous(memory_format=torch.channels_last),)


class Transposed(nn.Module):
    """A Linear whose weight is a transposed view, and an expanded Parameter."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(6, 4)
        self.linear.weight = nn.Parameter(torch.randn(6, 4).t())

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


@pattern("a weight that is not contiguous")
def strided_weight():
    return Transposed(), (torch.randn(3, 6),)


class Spectral(nn.Module):
    """A complex matrix in the Fourier domain (neural operators)."""

    def __init__(self) -> None:
        super().__init__()
        self.spectral = nn.Parameter(torch.randn(4, 4, dtype=torch.complex64))
        self.linear = nn.Linear(4, 3)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear((torch.fft.fft(x) @ self.spectral).real)


@pattern("a complex Parameter stays: the posterior is over real numbers", stays=("spectral",))
def complex_weight():
    return Spectral(), (torch.randn(3, 4),)


class OwnParameter(nn.Parameter):
    """A Parameter class of the user's own."""


class WithOwnParameter(nn.Module):
    """Holds one with an attribute."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = OwnParameter(torch.randn(4, 4))
        self.linear = nn.Linear(4, 4)
        self.linear.weight = OwnParameter(torch.randn(4, 4))
        self.linear.weight.optimizer_group = "slow"

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x @ self.weight)


@pattern("subclasses of Parameter")
def parameter_subclass():
    return WithOwnParameter(), (torch.randn(3, 4),)


@pattern("tiny and huge weights side by side")
def extreme_scales():
    model = nn.Sequential(nn.Linear(4, 4, bias=False), nn.Linear(4, 3))
    with torch.no_grad():
        model[0].weight.mul_(1e-8)
        model[1].weight.mul_(1e6)
    return model, (torch.randn(3, 4),)
