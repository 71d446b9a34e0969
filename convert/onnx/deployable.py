"""The model as it is deployed: a plain copy on the CPU, at the posterior mean, in eval mode, without caches."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from bensemble.errors import ConversionError, ExportError, one_line
from bensemble.posteriors import is_bayesian

from ..planning.copying import copy_model

__all__ = ["deployable"]


@contextlib.contextmanager
def deployable(model: nn.Module, computed_weights: bool) -> Iterator[nn.Module]:
    """A deployable copy of the user's model; random state and configuration are restored when the block ends.

    Args:
        model: The user's model.
        computed_weights: Whether parametrized weights are computed now instead of in every run. Those of
            ``orthogonal``, for instance, need operations that ONNX does not have.

    Raises:
        ExportError: The model cannot be copied to the CPU.
    """
    with torch.autocast("cpu", enabled=False), torch.random.fork_rng(devices=[]):
        network = _copy(model).eval()
        if computed_weights:
            _compute_weights(network)
        with _without_caches(network):
            yield network


def _copy(model: nn.Module) -> nn.Module:
    try:
        if is_bayesian(model):
            from ..surgery.collapsing import to_deterministic  # torch.fx comes with it

            return to_deterministic(model).cpu()
        return copy_model("export_onnx", model).cpu()
    except ConversionError as err:
        raise ExportError(
            f"export_onnx: {type(model).__name__} cannot be copied, got {one_line(err.__cause__ or err)}."
        ) from err
    except NotImplementedError as err:
        raise ExportError(
            f"export_onnx: {type(model).__name__} cannot be moved to the CPU, got {one_line(err)}."
        ) from err


def _compute_weights(network: nn.Module) -> None:
    """Put the value of every parametrized weight in place of its parametrization.

    ``remove_parametrizations`` would take the property from the class, which the user's own module shares.
    """
    for module in network.modules():
        if parametrize.is_parametrized(module):
            parametrizations = module.get_submodule("parametrizations")
            assert isinstance(parametrizations, nn.ModuleDict)
            for name in list(parametrizations):
                parametrizations[name] = _Constant(getattr(module, name).detach().clone())


class _Constant(nn.Module):
    """Returns one tensor."""

    def __init__(self, value: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("value", value)

    def forward(self) -> torch.Tensor:
        return self.get_buffer("value")


@contextlib.contextmanager
def _without_caches(network: nn.Module) -> Iterator[None]:
    """Set ``config.use_cache`` of Hugging Face models to False: a file cannot keep keys and values between calls."""
    configs: list[Any] = [getattr(module, "config", None) for module in network.modules()]
    caching = [config for config in configs if getattr(config, "use_cache", None) is True]
    for config in caching:
        config.use_cache = False
    try:
        yield
    finally:
        for config in caching:  # a copy may share the configuration of its model
            config.use_cache = True
