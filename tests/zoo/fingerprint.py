"""Everything about a model that a conversion must leave alone or bring back."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from .forward import identical


class Fingerprint:
    """Everything a conversion must leave alone or bring back."""

    def __init__(self, model: nn.Module) -> None:
        self.types = {path: type(module) for path, module in model.named_modules(remove_duplicate=False)}
        self.flags = {path: module.training for path, module in model.named_modules()}
        self.hooks = {path: _hooks(module) for path, module in model.named_modules()}
        self.tensors = {name: t.detach().clone() for name, t in _tensors(model)}
        self.keys = list(model.state_dict())
        self.ties = _ties(model)
        self.identities = {name: id(t) for name, t in _tensors(model)}
        self.grads = {name: p.requires_grad for name, p in model.named_parameters(remove_duplicate=False)}
        self.attributes = {path: sorted(vars(module)) for path, module in model.named_modules()}

    def compare(self, model: nn.Module, verb: str, identity: bool) -> None:
        """Raise with the first thing that differs."""
        other = Fingerprint(model)
        types = [
            f"{p}: {t.__name__} -> {other.types.get(p)}" for p, t in self.types.items() if other.types.get(p) is not t
        ]
        assert not types, f"{verb}: types {types[:3]}"
        assert len(self.types) == len(other.types), f"{verb}: new modules {set(other.types) - set(self.types)}"
        assert self.keys == other.keys, f"{verb}: keys {sorted(set(self.keys) ^ set(other.keys))[:4]} or their order"
        assert list(self.tensors) == list(other.tensors), f"{verb}: names of parameters and buffers"
        for name, tensor in self.tensors.items():
            assert identical(tensor, other.tensors[name]), f"{verb}: values of {name}"
            assert tensor.dtype == other.tensors[name].dtype, f"{verb}: dtype of {name}"
        assert self.ties == other.ties, f"{verb}: ties"
        assert self.grads == other.grads, f"{verb}: requires_grad"
        assert self.flags == other.flags, f"{verb}: training flags"
        assert self.hooks == other.hooks, (
            f"{verb}: hooks {[p for p in self.hooks if self.hooks[p] != other.hooks.get(p)][:3]}"
        )
        extra = [
            f"{p}: {set(a) ^ set(other.attributes[p])}" for p, a in self.attributes.items() if a != other.attributes[p]
        ]
        assert not extra, f"{verb}: attributes {extra[:3]}"
        if identity:
            assert self.identities == other.identities, f"{verb}: other Parameter objects"


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def _ties(model: nn.Module) -> list[list[str]]:
    """Names that share one Parameter."""
    groups: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        groups.setdefault(id(parameter), []).append(name)
    return sorted(names for names in groups.values() if len(names) > 1)


def _hooks(module: nn.Module) -> list[int]:
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_state_dict_hooks")
    return [len(getattr(module, kind)) for kind in kinds]
