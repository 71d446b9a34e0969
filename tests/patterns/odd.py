"""Code that nobody recommends and many have written."""

from __future__ import annotations

import functools
import types
from collections import OrderedDict, namedtuple
from dataclasses import dataclass

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .table import pattern

LEFT_BEHIND = {"checkpoint_is_assigned": "torch leaves behind what the attributes of the source hold as well"}


class MaskedConv(nn.Conv2d):
    """Zeroes a part of its weight in place before every use (PixelCNN)."""

    def __init__(self, *args, **kwargs) -> None:
        super().__init__(*args, **kwargs)
        self.register_buffer("mask", torch.ones_like(self.weight.detach()))
        self.mask[:, :, 1, 2:] = 0.0
        self.mask[:, :, 2:] = 0.0

    def forward(self, x: Tensor) -> Tensor:
        self.weight.data *= self.mask
        return super().forward(x)


class Partials(nn.Module):
    """Functions with weights bound to them."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.raw = nn.Linear(4, 4), nn.Parameter(torch.randn(4, 4))
        self.apply_linear = functools.partial(F.linear, weight=self.linear.weight, bias=self.linear.bias)
        self.steps = [functools.partial(torch.matmul, other=self.raw)]

    def forward(self, x: Tensor) -> Tensor:
        for step in self.steps:
            x = step(torch.tanh(self.apply_linear(x)))
        return x


@pattern("functools.partial binds a weight", known=LEFT_BEHIND)
def partials():
    return Partials(), (torch.randn(3, 4),)


Pair = namedtuple("Pair", ["key", "value"])


@dataclass
class Heads:
    """A plain object with weights in it."""

    first: Tensor
    rest: list[Tensor]


class Records(nn.Module):
    """Weights in named tuples, ordered dictionaries, dataclasses and namespaces."""

    def __init__(self) -> None:
        super().__init__()
        self.layers = nn.ModuleList([nn.Linear(4, 4, bias=False) for _ in range(5)])
        a, b, c, d, e = (layer.weight for layer in self.layers)
        self.pair, self.ordered = Pair(a, b), OrderedDict(c=c)
        self.heads, self.space = Heads(d, [d]), types.SimpleNamespace(weight=e)

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(x @ self.pair.key) @ self.pair.value @ self.ordered["c"]
        return torch.tanh(x @ self.heads.first + x @ self.heads.rest[0]) @ self.space.weight


@pattern("weights in named tuples, ordered dictionaries, dataclasses and namespaces", known=LEFT_BEHIND)
def records():
    return Records(), (torch.randn(3, 4),)


class Slotted(nn.Module):
    """Declares slots beside what nn.Module keeps."""

    __slots__ = ("counter",)

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        object.__setattr__(self, "counter", getattr(self, "counter", 0) + 1)  # torch's deepcopy loses it
        return x @ self.weight


@pattern("__slots__ on a module class")
def slots():
    return Slotted(), (torch.randn(3, 4),)


class Unregistered(nn.Module):
    """Parameters in a plain dictionary, which nn.Module does not know of."""

    def __init__(self) -> None:
        super().__init__()
        self.hidden = {"mix": nn.Parameter(torch.randn(4, 4))}
        self.linear = nn.Linear(4, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x @ self.hidden["mix"])


@pattern("Parameters in a plain dictionary, which are no parameters of the model")
def unregistered():
    return Unregistered(), (torch.randn(3, 4),)


class CachedWeight(nn.Module):
    """Keeps a product of its weights from one forward to the next in eval mode (re-parametrised blocks)."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Parameter(torch.randn(4, 6)), nn.Parameter(torch.randn(6, 4))
        self.register_buffer("scale", torch.tensor(0.5), persistent=False)

    @property
    def merged(self) -> Tensor:
        return self.scale * self.one @ self.two

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.merged


@pattern("a property computes the weight from Parameters")
def merged_property():
    return CachedWeight(), (torch.randn(3, 4),)


class ByName(nn.Module):
    """Finds its weights by name, in several ways."""

    def __init__(self) -> None:
        super().__init__()
        for i in range(4):
            setattr(self, f"w{i}", nn.Parameter(torch.randn(4, 4)))

    def forward(self, x: Tensor) -> Tensor:
        x = torch.tanh(x @ getattr(self, "w0")) @ self.get_parameter("w1")  # noqa: B009
        x = torch.tanh(x @ self.w2)
        return x @ dict(self.named_parameters(recurse=False)).get("w3", self.w3)


@pattern("weights by getattr and get_parameter, and a look into named_parameters")
def found_by_name():
    return ByName(), (torch.randn(3, 4),)


class FunctionalMeta(nn.Module):
    """A step of gradient descent inside forward, then a functional call with the new weights (MAML)."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(3, 4), nn.Tanh(), nn.Linear(4, 1))

    def forward(self, support: Tensor, query: Tensor) -> Tensor:
        fast = dict(self.net.named_parameters())
        with torch.enable_grad():
            loss = torch.func.functional_call(self.net, fast, (support,)).square().mean()
            grads = torch.autograd.grad(loss, list(fast.values()), create_graph=True, allow_unused=True)
        fast = {k: v if g is None else v - 0.1 * g for (k, v), g in zip(fast.items(), grads, strict=True)}
        return torch.func.functional_call(self.net, fast, (query,))


@pattern(
    "MAML: named_parameters, a gradient step and a functional call in forward",
    known={"held_sample_is_used_everywhere": "the inner step moves every named parameter, and so rho"},
)
def maml():
    return FunctionalMeta().double(), (torch.randn(4, 3).double(), torch.randn(2, 3).double())
