"""The public context that holds one weight sample of a whole model."""

from __future__ import annotations

import warnings
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..checks import check_module
from ..models.sharding import holds_shards
from ..noise.stack import HeldSample, holding
from ..posterior import Posterior
from ..posteriors import bayesian_layers

__all__ = ["draw_sample", "sampling", "warn_where_not_held"]


@contextmanager
def sampling(model: nn.Module, generator: torch.Generator | None = None) -> Iterator[None]:
    """Hold one weight sample of every Bayesian layer in ``model`` until the context ends.

    The sample is the same for every forward, every batch and every read of ``.weight`` inside: what prediction,
    Thompson sampling and active learning need. It is differentiable: mu and rho receive gradients with the noise held.
    Training flags are not touched; dropout and norms follow them. Contexts nest, the inner one wins; each thread has
    its own. Activation checkpointing runs forwards again during ``backward()``: call it inside the context, in the same
    thread and before the next forward. Elsewhere it is refused.

    Args:
        model: Any module; layers without a posterior are not affected.
        generator: Source of the noise; default is torch's default generator of each weight's device. Noise is drawn
            on the generator's device and moved to the weight's, so a CPU generator gives the same sample anywhere.

    Raises:
        InvalidTypeError: ``model`` is not a module.

    Example:
        >>> with bensemble.sampling(bnn, torch.Generator().manual_seed(0)):
        ...     torch.equal(bnn(x), bnn(x))
        True
    """
    with holding(draw_sample(model, generator)):
        yield


def draw_sample(model: nn.Module, generator: torch.Generator | None = None) -> HeldSample:
    """One weight sample of a whole model, which may be held more than once; see :func:`sampling`."""
    check_module("sampling", model)
    layers: dict[int, nn.Module] = {}
    noise: dict[tuple[int, str], Tensor] = {}
    drawn: dict[int, Tensor] = {}  # tied weights share one draw
    for _, layer in bayesian_layers(model):
        layers[id(layer)] = layer
        for posterior in layer._posteriors():
            key = id(posterior.mu)
            if key not in drawn:
                drawn[key] = posterior.draw_noise(generator)
            noise[id(layer), posterior.stem] = drawn[key]
            warn_where_not_held(posterior)
    return HeldSample(layers, noise, keeps_values=not holds_shards(model))


def warn_where_not_held(posterior: Posterior) -> None:
    """Warn of a layer of a user's own that reads its posterior in another way than this module can see."""
    layer, stem = posterior.layer, posterior.stem
    if stem not in layer._stems.values():
        warnings.warn(
            f"sampling: {type(layer).__name__} declares {stem}_mu and {stem}_rho and reads "
            "them itself, so its sample cannot be held nor its weights masked; read the weight through "
            f"`{stem} = bensemble.layers.weight_property({stem!r})`.",
            UserWarning,
            stacklevel=3,
        )
