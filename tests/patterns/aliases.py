"""Other ways to hold a module or a Parameter than to register it."""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .table import pattern


class PlainList(nn.Module):
    """A Python list is what forward loops over."""

    def __init__(self) -> None:
        super().__init__()
        self.registered = nn.ModuleList([nn.Linear(5, 5), nn.Conv1d(1, 1, 3, padding=1)])
        self.order = [self.registered[1], self.registered[0]]
        self.by_name = {"last": self.registered[0]}

    def forward(self, x: Tensor) -> Tensor:
        x = self.order[0](x[:, None])[:, 0]
        return self.by_name["last"](self.order[1](x))


@pattern("modules in a Python list and a dict")
def python_list():
    return PlainList(), (torch.randn(3, 5),)


class BoundMethods(nn.Module):
    """Calls its layers through methods that were bound before the conversion."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.conv = nn.Linear(5, 5), nn.Conv1d(1, 1, 3, padding=1)
        self.attention = nn.MultiheadAttention(5, 1, batch_first=True)
        self.steps = [self.conv.forward, self.linear.forward]

    def forward(self, x: Tensor) -> Tensor:
        x = self.steps[1](self.steps[0](x[:, None]))
        return self.attention(x, x, x)[0]


@pattern("bound forward methods in a list bypass the call of the module")
def bound_methods():
    return BoundMethods(), (torch.randn(3, 5),)


class AttributeAlias(nn.Module):
    """A plain attribute is the weight of a child."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 5)
        self.body = nn.Linear(5, 5)
        object.__setattr__(self, "shortcut", self.linear.weight)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(torch.tanh(self.body(x)), self.shortcut)


@pattern("a plain attribute aliases the weight of a child that is never called")
def attribute_alias():
    return AttributeAlias(), (torch.randn(3, 5),)


class ListedWeights(nn.Module):
    """Weights of children in Python containers."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(5, 5, bias=False), nn.Linear(5, 5, bias=False)
        self.weights = [self.one.weight, self.two.weight]
        self.named = {"again": (self.one.weight, 0.5)}

    def forward(self, x: Tensor) -> Tensor:
        for weight in self.weights:
            x = torch.tanh(F.linear(x, weight))
        weight, scale = self.named["again"]
        return F.linear(x, weight) * scale


@pattern(
    "lists and dicts of Parameters that belong to children",
    known={"checkpoint_is_assigned": "assign=True leaves the old Parameters in the lists, in the source as well"},
)
def listed_weights():
    return ListedWeights(), (torch.randn(3, 5),)


class ParentReference(nn.Module):
    """The child knows its parent, outside of the module tree."""

    def __init__(self) -> None:
        super().__init__()
        self.child = Child(self)
        self.linear = nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.child(x)


class Child(nn.Module):
    """Calls a sibling through its parent."""

    def __init__(self, parent: nn.Module) -> None:
        super().__init__()
        self.parents = (parent,)
        self.own = nn.Linear(5, 5)

    def forward(self, x: Tensor) -> Tensor:
        return self.parents[0].linear(self.own(x))


@pattern("a cycle: a child reaches a sibling through a reference to its parent")
def parent_reference():
    return ParentReference(), (torch.randn(3, 5),)


class Forwarding(nn.Module):
    """Answers every unknown attribute from the wrapped module."""

    def __init__(self, inner: nn.Module) -> None:
        super().__init__()
        self.inner = inner

    def __getattr__(self, name: str) -> object:
        try:
            return super().__getattr__(name)
        except AttributeError:
            return getattr(super().__getattr__("inner"), name)

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight, self.bias) + self.inner(x)


@pattern("__getattr__ forwards the weight of the wrapped layer")
def getattr_forwarding():
    return Forwarding(nn.Linear(5, 5)), (torch.randn(3, 5),)


class ReadsDtype(nn.Module):
    """Casts its input to what the weights say (every model of Hugging Face)."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(5, 5), nn.Linear(5, 3)

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(x.to(self.one.weight.dtype).to(next(self.parameters()).device))
        return self.two(x.to(self.two.weight.device))[..., : self.two.weight.shape[0]] + self.two.weight.new_zeros(())


@pattern("reads dtype, device and shape of a weight in every forward")
def reads_dtype():
    return ReadsDtype(), (torch.randn(3, 5, dtype=torch.float64),)


class PatchedForward(nn.Module):
    """Replaces the forward of a child on the instance, in the way of accelerate's hooks."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(5, 5)
        self.linear.forward = Scaled(self.linear)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


class Scaled:
    """Stands for the forward of a Linear."""

    def __init__(self, layer: nn.Linear) -> None:
        self.layer = layer

    def __call__(self, x: Tensor) -> Tensor:
        return F.linear(x, self.layer.weight * 2, self.layer.bias)


@pattern("the forward of a Linear is replaced on the instance")
def patched_forward():
    return PatchedForward(), (torch.randn(3, 5),)


class OtherMethods(nn.Module):
    """forward is not where the work happens."""

    def __init__(self) -> None:
        super().__init__()
        self.encoder, self.decoder = nn.Linear(5, 3), nn.Linear(3, 5)
        self.mixing = nn.Parameter(torch.randn(3, 3))

    def encode(self, x: Tensor) -> Tensor:
        return self.encoder(x) @ self.mixing

    def decode(self, z: Tensor) -> Tensor:
        return self.decoder(z)

    def forward(self, x: Tensor) -> Tensor:
        return self.decode(self.encode(x))


@pattern("forward delegates to methods that users call by themselves")
def other_methods():
    return OtherMethods(), (torch.randn(3, 5),)
