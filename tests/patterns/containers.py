"""Trees, hooks, and what goes in and out."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn

from .table import pattern


class Towers(nn.Module):
    """ModuleDict, ModuleList, and names with dots' worth of depth."""

    def __init__(self) -> None:
        super().__init__()
        self.towers = nn.ModuleDict({"a": nn.ModuleList([nn.Linear(4, 4)]), "b": nn.Sequential(nn.Linear(4, 4))})
        self.empty = nn.ModuleList()
        self.none = None

    def forward(self, x: Tensor) -> Tensor:
        for layer in self.towers["a"]:
            x = layer(x)
        return self.towers["b"](x)


@pattern("ModuleDict and ModuleList, empty ones too")
def module_containers():
    return Towers(), (torch.randn(3, 4),)


class DictInOut(nn.Module):
    """A mapping comes in, a mapping with more than tensors goes out."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, batch: dict[str, Tensor]) -> dict[str, object]:
        out = self.linear(batch["x"])
        return {"logits": out, "nested": [out.sum(-1), (batch["mask"],)], "note": "text"}


@pattern("a dict as the one argument, and nested outputs")
def dict_in_and_out():
    return DictInOut(), ({"x": torch.randn(3, 4), "mask": torch.ones(3)},)


@dataclass
class Output:
    """What the model below returns."""

    logits: Tensor
    loss: Tensor | None = None


class DataclassOut(nn.Module):
    """Keyword-only inputs, a dataclass as the output."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)

    def forward(self, *, x: Tensor, labels: Tensor | None = None) -> Output:
        logits = self.linear(x)
        return Output(logits, None if labels is None else nn.functional.cross_entropy(logits, labels))


@pattern("keyword-only arguments and a dataclass with an optional loss")
def dataclass_output():
    return DataclassOut(), {"x": torch.randn(3, 4), "labels": torch.tensor([0, 2, 1])}


def add_one(module: nn.Module, args: tuple[Tensor, ...], output: Tensor) -> Tensor:
    return output + 1.0


def double(module: nn.Module, args: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    return (args[0] * 2.0,)


def with_keywords(module: nn.Module, args: tuple, kwargs: dict) -> tuple[tuple, dict]:
    return args, kwargs


def scale_gradient(module: nn.Module, grad_input: tuple, grad_output: tuple) -> None:
    return None


@pattern("hooks of every kind on layers and on the root")
def hooks():
    model = nn.Sequential(nn.Linear(4, 4), nn.Sequential(nn.Linear(4, 4)), nn.MultiheadAttention(4, 1))
    model = Hooked(model)
    model.layers[0].register_forward_hook(add_one)
    model.layers[0].register_forward_pre_hook(double)
    model.layers[0].register_full_backward_hook(scale_gradient)
    model.layers[1].register_forward_pre_hook(with_keywords, with_kwargs=True)
    model.layers[2].register_full_backward_pre_hook(ignore_gradient)
    model.register_forward_hook(add_one, always_call=True)
    return model, (torch.randn(3, 4),)


def ignore_gradient(module: nn.Module, grad_output: tuple) -> None:
    return None


class Hooked(nn.Module):
    """Runs two layers and an attention."""

    def __init__(self, layers: nn.Sequential) -> None:
        super().__init__()
        self.layers = layers

    def forward(self, x: Tensor) -> Tensor:
        x = self.layers[1](self.layers[0](x))
        return self.layers[2](x, x, x)[0]


class Renamed(nn.Module):
    """Hooks that rename keys of the state dict in both directions."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.register_load_state_dict_pre_hook(accept_old_names)

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


def accept_old_names(module: nn.Module, state: dict, prefix: str, *args: object) -> None:
    for key in [key for key in state if key.startswith(f"{prefix}dense.")]:
        state[prefix + "linear." + key.removeprefix(f"{prefix}dense.")] = state.pop(key)


@pattern("a hook that renames keys before they load")
def load_hook():
    return Renamed(), (torch.randn(3, 4),)


class ExtraState(nn.Module):
    """State beside parameters and buffers."""

    def __init__(self) -> None:
        super().__init__()
        self.linear = nn.Linear(4, 3)
        self.steps = 7
        self.register_buffer("scratch", torch.zeros(2), persistent=False)

    def get_extra_state(self) -> dict[str, int]:
        return {"steps": self.steps}

    def set_extra_state(self, state: dict[str, int]) -> None:
        self.steps = state["steps"]

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x) * self.steps


@pattern("extra state in the state dict, and a buffer that is not saved")
def extra_state():
    return ExtraState(), (torch.randn(3, 4),)


class CustomSave(nn.Module):
    """Saves and loads a key of its own."""

    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 3))

    def _save_to_state_dict(self, destination: dict, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        destination[prefix + "version"] = torch.tensor(3)

    def _load_from_state_dict(self, state: dict, prefix: str, *args: object) -> None:
        state.pop(prefix + "version", None)
        super()._load_from_state_dict(state, prefix, *args)

    def forward(self, x: Tensor) -> Tensor:
        return x @ self.weight


@pattern("a key of its own in the state dict, taken out before loading")
def own_state_dict():
    return CustomSave(), (torch.randn(3, 4),)


class Nothing(nn.Module):
    """Submodules without parameters, one set to None, one never called."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.dropout, self.norm = nn.Linear(4, 3), nn.Dropout(0.0), nn.Identity()
        self.downsample = None
        self.register_module("later", None)
        self.register_parameter("gain", None)

    def forward(self, x: Tensor) -> Tensor:
        return self.norm(self.dropout(self.linear(x)))


@pattern("parameters and modules registered as None")
def registered_none():
    return Nothing(), (torch.randn(3, 4),)


class Unused(nn.Module):
    """A head that forward never calls."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.projector = nn.Linear(4, 3), nn.Linear(4, 8)
        self.unused = nn.Parameter(torch.randn(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        return self.linear(x)


@pattern(
    "a layer that is never called stays as it is: the KL alone would shrink it",
    stays=("projector.weight", "unused"),
)
def never_called():
    return Unused(), (torch.randn(3, 4),)
