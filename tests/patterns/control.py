"""Forwards that a tracer cannot follow."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .table import pattern


class EarlyExit(nn.Module):
    """Stops when it is sure."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4, 4) for _ in range(3)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            if x.abs().max() > 1e3:
                break
            x = layer(x)
        return x


@pattern("a branch on the data")
def early_exit():
    return EarlyExit(), (torch.randn(3, 4),)


class Dispatch(nn.Module):
    """Decides by isinstance what to do with a child."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4, 4), nn.Conv1d(4, 4, 1), nn.MultiheadAttention(4, 1), nn.GRU(4, 4)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            if isinstance(layer, nn.Linear):
                x = layer(x)
            elif isinstance(layer, nn.Conv1d):
                x = layer(x.t()).t()
            elif isinstance(layer, nn.MultiheadAttention):
                x = layer(x, x, x)[0]
            else:
                x = layer(x)[0]
        return x


@pattern("isinstance decides how a child is called")
def isinstance_dispatch():
    return Dispatch(), (torch.randn(3, 4),)


class TrainingBranch(nn.Module):
    """An auxiliary head in train mode only."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.head, self.auxiliary = nn.Linear(4, 4), nn.Linear(4, 3), nn.Linear(4, 3)

    def forward(self, x: Tensor) -> tuple[Tensor, ...]:
        x = self.body(x)
        return (self.head(x), self.auxiliary(x)) if self.training else (self.head(x),)


@pattern(
    "a head that runs in train mode only",
    silent={
        "auxiliary.weight": "runs in train mode only",
        "auxiliary.bias": "runs in train mode only",
    },
)
def training_branch():
    return TrainingBranch(), (torch.randn(3, 4),)


class PartlyFrozen(nn.Module):
    """A backbone under no_grad, with frozen weights."""

    def __init__(self) -> None:
        super().__init__()
        self.backbone, self.head = nn.Linear(4, 4), nn.Linear(4, 3)
        self.backbone.requires_grad_(False)

    def forward(self, x: Tensor) -> Tensor:
        with torch.no_grad():
            x = self.backbone(x)
        return self.head(x)


@pattern("a frozen backbone under no_grad", stays=("backbone.weight",))
def frozen_backbone():
    return PartlyFrozen(), (torch.randn(3, 4),)


class NoGradPart(nn.Module):
    """A trainable layer that forward runs without gradients."""

    def __init__(self) -> None:
        super().__init__()
        self.target, self.online = nn.Linear(4, 4), nn.Linear(4, 4)

    @torch.no_grad()
    def project(self, x: Tensor) -> Tensor:
        return self.target(x)

    def forward(self, x: Tensor) -> Tensor:
        return self.online(x) + self.project(x)


@pattern("a decorated method runs a layer without gradients")
def no_grad_part():
    return NoGradPart(), (torch.randn(3, 4),)


class DetachedWeight(nn.Module):
    """Reads its weight detached for a second purpose."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) + x @ self.linear.weight.detach().clone()


@pattern("the weight is also used detached")
def detached_weight():
    return DetachedWeight(), (torch.randn(3, 4),)


class Square(torch.autograd.Function):
    """A user's own autograd function of a weight."""

    @staticmethod
    def forward(ctx, x: Tensor, weight: Tensor) -> Tensor:
        ctx.save_for_backward(x, weight)
        return x @ weight.square()

    @staticmethod
    def backward(ctx, grad: Tensor) -> tuple[Tensor, Tensor]:
        x, weight = ctx.saved_tensors
        return grad @ weight.square().t(), 2 * weight * (x.t() @ grad)


class CustomFunction(nn.Module):
    """Applies it to the weight of a Linear and to a Parameter of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.raw = nn.Linear(4, 4), nn.Parameter(torch.randn(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        return Square.apply(Square.apply(x, self.linear.weight), self.raw)


@pattern("a custom autograd function saves the weight for its backward")
def custom_function():
    return CustomFunction(), (torch.randn(3, 4),)


class Random(nn.Module):
    """Skips a layer at random in train mode."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4, 4) for _ in range(3)])

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.layers:
            if not self.training or float(torch.rand(())) < 0.9:
                x = layer(x)
        return x


@pattern("layer drop: random control flow in train mode")
def layer_drop():
    return Random(), (torch.randn(3, 4),)


class AutocastPart(nn.Module):
    """A part in float32 inside a region of lower precision."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        with torch.autocast("cpu", dtype=torch.bfloat16):
            x = self.one(x)
            with torch.autocast("cpu", enabled=False):
                return self.two(x.float())


@pattern("autocast inside forward, with an exception from it")
def autocast_inside():
    return AutocastPart(), (torch.randn(3, 4),)


class InnerGradient(nn.Module):
    """The output is a gradient of an energy with respect to the input."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 8), nn.Linear(8, 1)

    def forward(self, x: Tensor) -> Tensor:
        with torch.enable_grad():
            x = x.detach().requires_grad_()
            energy = self.two(torch.nn.functional.softplus(self.one(x))).sum()
            return -torch.autograd.grad(energy, x, create_graph=True)[0]


@pattern(
    "forces: the output is itself a gradient, so training needs second derivatives",
    silent={"two.bias": "the gradient of the energy does not depend on it"},
)
def inner_gradient():
    return InnerGradient(), (torch.randn(3, 4),)
