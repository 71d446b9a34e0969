"""The layer under test, its deterministic module, and the comparisons that contracts use."""

from __future__ import annotations

import copy
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InvalidTypeError
from ..gaussian import rho_from_sigma
from ..layers import BaseBayesianLayer, bayesian_type
from ..layers.class_choice import bayesian_class
from ..layers.swap import NewPosterior, make_bayesian, make_deterministic
from ..priors import Normal

__all__ = ["Case", "require", "require_equal", "require_same_state", "seeded", "to_bayesian", "to_plain"]


@dataclass(frozen=True)
class Case:
    """A layer under test, built again for each use; see :func:`bensemble.testing.check_layer`."""

    make_layer: Callable[[], nn.Module]
    make_input: Callable[[], Tensor]
    dtypes: tuple[torch.dtype, ...]
    num_samples: int

    def pair(self) -> tuple[BaseBayesianLayer, nn.Module | None]:
        """The layer in training mode, with a different sigma for each weight, and its deterministic module if any."""
        module = self.make_layer()
        twin: nn.Module | None
        if isinstance(module, BaseBayesianLayer):
            stands_for = getattr(type(module), "deterministic_class", None)
            layer, twin = module, None if stands_for is None else to_plain(module)
        elif bayesian_type(type(module)) is not None:
            layer, twin = to_bayesian(copy.deepcopy(module)), module
        else:
            raise InvalidTypeError(
                "check_layer: make_layer must give a BaseBayesianLayer or a module of a registered type, got "
                f"{type(module).__name__}; register its Bayesian type first."
            )
        with torch.no_grad():
            for posterior in layer.posteriors():
                low = 0.3 if posterior.mu.dim() > 1 else 0.05  # the noise of biases must not hide that of weights
                posterior.rho.copy_(rho_from_sigma(low + low * torch.rand_like(posterior.rho)))
        return layer.train(), twin

    def layer(self) -> BaseBayesianLayer:
        """The layer alone."""
        return self.pair()[0]


def to_plain(layer: BaseBayesianLayer) -> nn.Module:
    """A copy of the layer with its deterministic type, at the means."""
    layer = copy.deepcopy(layer)
    means = {posterior.name: nn.Parameter(posterior.mu.detach()) for posterior in layer.posteriors()}
    return make_deterministic(layer, means)


def to_bayesian(module: nn.Module) -> BaseBayesianLayer:
    """The module with its class changed to the registered Bayesian type; sigma and prior are 1."""
    posteriors = {
        name: NewPosterior(p, nn.Parameter(rho_from_sigma(torch.ones_like(p.detach()))), Normal())
        for name, p in module.named_parameters(recurse=False)
    }
    layer = make_bayesian(module, bayesian_class(module, posteriors, local=True), posteriors)
    assert isinstance(layer, BaseBayesianLayer)
    return layer


def require(holds: bool, otherwise: str) -> None:
    """Raise an AssertionError unless the claim holds, also under ``python -O``."""
    if not holds:
        raise AssertionError(otherwise)


def require_equal(actual: Tensor, expected: Tensor, what: str) -> None:
    """Raise unless two tensors agree bit for bit."""
    if not torch.equal(actual, expected):
        difference = f"{tuple(actual.shape)} and {tuple(expected.shape)}"
        if actual.shape == expected.shape:
            difference = f"by up to {float((actual.double() - expected.double()).detach().abs().max()):g}"
        raise AssertionError(f"{what} differ: {difference}")


def require_same_state(actual: nn.Module, expected: nn.Module) -> None:
    """Raise unless two modules have the same state dict, keys in the same order."""
    states: list[dict[str, Any]] = [actual.state_dict(), expected.state_dict()]
    require(list(states[0]) == list(states[1]), f"keys are {list(states[0])}, not {list(states[1])}")
    for key, value in states[1].items():
        require_equal(states[0][key], value, key)


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """Seed torch's generator for the block and restore its state afterwards."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        yield
