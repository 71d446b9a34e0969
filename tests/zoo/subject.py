"""One model under test, and the states that the checks put it into."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from bensemble import Posterior, named_posteriors

from .entries import Example
from .forward import floating
from .result import Result

#: softplus of it is 0 in float32: no noise at all.
SILENT = -200.0
#: softplus of it is 2e-9: the gradient with respect to rho exists, and the noise changes nothing.
FAINT = -20.0


@dataclass
class Subject:
    """One model under test, with what the checks share."""

    source: nn.Module
    example: Example
    result: Result
    budget: float
    bnn: nn.Module = field(init=False)
    outputs: dict[str, Tensor] = field(init=False)

    @property
    def posteriors(self) -> dict[str, Posterior]:
        """Every posterior by the original name of its weight."""
        return dict(named_posteriors(self.bnn))

    @property
    def train_inputs(self) -> Any:
        """Inputs for train mode."""
        return self.example.inputs if self.example.train_inputs is None else self.example.train_inputs


@contextmanager
def training(model: nn.Module) -> Iterator[None]:
    """Train mode, with buffers and flags put back afterwards."""
    flags = [(module, module.training, dict(module._buffers)) for module in model.modules()]
    values = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    model.train()
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in values:
                buffer.copy_(value)
        for module, flag, buffers in flags:
            module.training = flag
            for name, buffer in buffers.items():
                if module._buffers[name] is not buffer and not isinstance(module, torch.jit.ScriptModule):
                    module._buffers[name] = buffer


@contextmanager
def all_rho(bnn: nn.Module, value: float) -> Iterator[dict[int, Tensor]]:
    """Every rho at one value, restored afterwards; yields the original rhos by identity."""
    rhos = {id(p.rho): p.rho for _, p in named_posteriors(bnn)}
    kept = {key: rho.detach().clone() for key, rho in rhos.items()}
    for rho in rhos.values():
        rho.data.fill_(value)
    try:
        yield kept
    finally:
        for key, rho in rhos.items():
            rho.data.copy_(kept[key])


def projection(outputs: dict[str, Tensor]) -> Tensor | None:
    """A random projection of everything that carries a gradient."""
    terms = [value for value in floating(outputs).values() if value.requires_grad and value.numel()]
    if not terms:
        return None
    generator = torch.Generator().manual_seed(9)
    total = torch.zeros((), dtype=torch.float64)
    for value in terms:
        value = torch.view_as_real(value) if value.is_complex() else value
        weights = torch.randn(value.shape, generator=generator, dtype=torch.float32)
        finite = torch.isfinite(value)
        total = total + torch.where(finite, value.double() * weights, 0.0).mean()
    return total
