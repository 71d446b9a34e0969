"""The model as it is deployed: a plain copy on the CPU, at the posterior mean, in eval mode, without caches."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any

import torch
from torch import nn
from torch.nn.utils import parametrize

from bensemble.errors import ConversionError, ExportError, one_line
from bensemble.posteriors import all_names, is_bayesian

from ..planning.copying import copy_model

__all__ = ["deployable"]


@contextlib.contextmanager
def deployable(model: nn.Module, computed_weights: bool) -> Iterator[nn.Module]:
    """A deployable copy of the user's model; random state and configuration are restored when the block ends.

    Args:
        model: The user's model.
        computed_weights: Whether parametrized weights with a posterior are computed now instead of in every run, as
            all others are. Those of ``orthogonal``, for instance, need operations that ONNX does not have.

    Raises:
        ExportError: The model cannot be copied to the CPU.
    """
    with torch.autocast("cpu", enabled=False), torch.random.fork_rng(devices=[]):
        network = _copy(model).eval()
        _compute_weights(network, () if computed_weights else tuple(all_names(model)))
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


def _compute_weights(network: nn.Module, but: tuple[str, ...]) -> None:
    """Put the value of every parametrized weight in place of its parametrization, but of those with a posterior.

    ``remove_parametrizations`` would take the property from the class, which the user's own module shares.
    """
    for path, module in network.named_modules():
        if parametrize.is_parametrized(module):
            parametrizations = module.get_submodule("parametrizations")
            assert isinstance(parametrizations, nn.ModuleDict)
            for name in list(parametrizations):
                inside = f"{path}.parametrizations.{name}.".lstrip(".")
                if any(posterior.startswith(inside) for posterior in but):
                    continue
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
