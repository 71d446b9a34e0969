"""Module classes that do something when they are made, subclassed or set."""

from __future__ import annotations

import abc
from dataclasses import dataclass, field
from typing import Any, ClassVar, Generic, TypeVar

import torch
from torch import Tensor, nn

from .table import pattern

T = TypeVar("T")


class Registry(nn.Module):
    """A plugin base that insists on keywords and unique names of its subclasses."""

    known: ClassVar[dict[str, type]] = {}

    def __init_subclass__(cls, *, key: str, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if key in Registry.known:
            raise ValueError(f"two plugins are called {key}")
        Registry.known[key] = cls


class Plugin(Registry, key="plugin"):
    """A raw weight on such a class."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


@pattern("__init_subclass__ demands a keyword and registers every subclass")
def init_subclass():
    return Plugin(), (torch.randn(3, 4),)


class Meta(type):
    """A metaclass that counts instances."""

    made: ClassVar[int] = 0

    def __call__(cls, *args: Any, **kwargs: Any) -> Any:
        Meta.made += 1
        return super().__call__(*args, **kwargs)


class WithMeta(nn.Module, metaclass=Meta):
    """A raw weight on such a class."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


@pattern("a metaclass of the user's own")
def metaclass():
    return WithMeta(), (torch.randn(3, 4),)


class GenericHead(nn.Module, Generic[T], abc.ABC):
    """Generic and abstract."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4))

    @abc.abstractmethod
    def finish(self, x: Tensor) -> Tensor: ...

    def forward(self, x: Tensor) -> Tensor:
        return self.finish(x @ self.weight)


class ConcreteHead(GenericHead[int]):
    """Its leaf."""

    def finish(self, x: Tensor) -> Tensor:
        return torch.tanh(x)


@pattern("generic, abstract base classes")
def generic_and_abstract():
    return ConcreteHead(), (torch.randn(3, 4),)


class StrictSetattr(nn.Module):
    """Refuses to be changed after it is built."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4))
        self.linear = nn.Linear(4, 3)
        self.__dict__["sealed"] = True

    def __setattr__(self, name: str, value: Any) -> None:
        if self.__dict__.get("sealed") and name != "training":
            raise AttributeError(f"{type(self).__name__} is sealed")
        super().__setattr__(name, value)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x @ self.weight)


@pattern(
    "__setattr__ refuses changes",
    known={"checkpoint_is_assigned": "the source refuses to assign its Parameters as well"},
)
def sealed():
    return StrictSetattr(), (torch.randn(3, 4),)


@dataclass(eq=False)
class DataModule(nn.Module):
    """A module that is a dataclass."""

    size: int
    weight: nn.Parameter = field(init=False)

    def __post_init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(self.size, self.size))

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


@pattern("a dataclass with the weight as a field")
def dataclass_module():
    return DataModule(4), (torch.randn(3, 4),)


class Counting(nn.Module):
    """Overrides __call__, and counts."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4))
        self.calls = 0

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        self.calls += 1
        return super().__call__(*args, **kwargs)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


@pattern("overrides __call__ and changes itself in it")
def overrides_call():
    return Counting(), (torch.randn(3, 4),)


class WeightProperty(nn.Module):
    """Its weight is a property over a Parameter of another name."""

    def __init__(self) -> None:
        super().__init__()
        self._weight = nn.Parameter(torch.randn(4, 4))

    @property
    def weight(self) -> Tensor:
        return self._weight * 2

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


@pattern("the public weight is a property over a private Parameter")
def weight_is_a_property():
    return WeightProperty(), (torch.randn(3, 4),)


class Reducing(nn.Module):
    """Pickles in its own way."""

    def __init__(self, size: int = 4) -> None:
        super().__init__()
        self.size = size
        self.weight = nn.Parameter(torch.randn(size, size))
        self.cache = {"not": "pickled"}

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "cache"}

    def __setstate__(self, state: dict[str, Any]) -> None:
        super().__setstate__(state)
        self.cache = {}

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


@pattern("its own __getstate__ and __setstate__")
def own_getstate():
    return Reducing(), (torch.randn(3, 4),)


class Outer(nn.Module):
    """Holds a class of its own."""

    class Inner(nn.Module):
        """A nested class."""

        def __init__(self) -> None:
            super().__init__()
            self.weight = nn.Parameter(torch.randn(4, 4))

        def forward(self, x: Tensor) -> Tensor:
            return x @ self.weight

    def __init__(self) -> None:
        super().__init__()
        self.inner = Outer.Inner()

    def forward(self, x: Tensor) -> Tensor:
        return self.inner(x)


@pattern("a class inside a class: its qualified name has a dot")
def nested_class():
    return Outer(), (torch.randn(3, 4),)


@pattern("a class inside a function, which cannot be pickled by anybody")
def local_class():
    class Local(nn.Linear):
        def forward(self, x: Tensor) -> Tensor:
            return super().forward(x) * 2

    return Local(4, 3), (torch.randn(3, 4),)


class ZeroArgumentSuper(nn.Linear):
    """Uses super() and __class__ in several methods."""

    def extra_repr(self) -> str:
        return super().extra_repr() + f", owner={__class__.__name__}"

    def reset_parameters(self) -> None:
        super().reset_parameters()
        nn.init.zeros_(self.bias)

    def forward(self, x: Tensor) -> Tensor:
        return super(ZeroArgumentSuper, self).forward(x)  # noqa: UP008


@pattern("super() with and without arguments")
def super_calls():
    return ZeroArgumentSuper(4, 3), (torch.randn(3, 4),)
