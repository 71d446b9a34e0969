"""One weight sample for a whole model, held for as long as a context is open.

Inside ``with sampling(model):`` every forward uses the weights ``mu + sigma * eps`` with ``eps`` drawn on entry, so
that the model is one function for every batch: what prediction, Thompson sampling and active learning need.

The noise lives on a thread-local stack, keyed by layer, and never on the layers: contexts nest, threads do not see
each other, and a deepcopy or pickle taken inside is an ordinary Bayesian model.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from .errors import InvalidTypeError

if TYPE_CHECKING:
    from .posterior import Posterior

__all__ = ["Frame", "active_frame", "mean_mode", "sampling"]


class Frame:
    """What one open context says about some layers.

    Attributes:
        noise: Standard normal noise by layer identity, then by stem; empty for a frame that asks for the mean.
        layers: The layers the frame speaks about, by identity. Holding them keeps the identities valid.
    """

    def __init__(self, layers: dict[int, nn.Module], noise: dict[int, dict[str, Tensor]] | None) -> None:
        self.layers = layers
        self.noise = noise
        self.values: dict[tuple[int, str], tuple[tuple[object, ...], Tensor]] = {}

    @property
    def is_mean(self) -> bool:
        """Whether the frame asks for the posterior mean instead of a sample."""
        return self.noise is None

    def noise_of(self, posterior: Posterior) -> Tensor:
        """The noise held for one posterior."""
        assert self.noise is not None
        return self.noise[id(posterior.layer)][posterior.stem]

    def sample(self, posterior: Posterior) -> Tensor:
        """The weight of this frame, ``mu + sigma * eps``, differentiable in mu and rho when grad is enabled."""
        key, noise = (id(posterior.layer), posterior.stem), self.noise_of(posterior)
        if torch.is_grad_enabled() or torch.compiler.is_compiling() or posterior.mu.is_inference():
            return posterior.draw(noise)
        # Without gradients the value is kept, as long as nobody replaces or updates the parameters it came from.
        mask = posterior.mask
        source = (posterior.mu, posterior.mu._version, posterior.rho, posterior.rho._version, mask)
        kept = self.values.get(key)
        if kept is None or any(a is not b and not (isinstance(a, int) and a == b) for a, b in zip(kept[0], source)):
            kept = self.values[key] = (source, posterior.draw(noise))
        return kept[1]


_local = threading.local()


def _frames() -> list[Frame]:
    """The open frames of this thread, innermost last."""
    frames: list[Frame] | None = getattr(_local, "frames", None)
    if frames is None:
        frames = _local.frames = []
    return frames


def active_frame(layer: nn.Module) -> Frame | None:
    """The innermost frame of this thread that speaks about the layer."""
    frames: list[Frame] | None = getattr(_local, "frames", None)
    if not frames:
        return None
    key = id(layer)
    for frame in reversed(frames):
        if key in frame.layers:
            return frame
    return None


@contextmanager
def _open(frame: Frame) -> Iterator[None]:
    frames = _frames()
    frames.append(frame)
    try:
        yield
    finally:
        frames.remove(frame)


@contextmanager
def sampling(model: nn.Module, generator: torch.Generator | None = None) -> Iterator[None]:
    """Hold one weight sample of every Bayesian layer in ``model`` until the context ends.

    The sample is the same for every forward, every batch and every read of ``.weight`` inside. It is differentiable:
    mu and rho receive gradients with the noise held. Training flags are not touched; dropout and norms follow them.
    Contexts nest, the inner one wins; each thread has its own.

    Args:
        model: Any module; layers without a posterior are not affected.
        generator: Source of the noise; default is torch's default generator of each weight's device. Noise is drawn
            on the generator's device and moved to the weight's, so a CPU generator gives the same sample anywhere.

    Raises:
        InvalidTypeError: ``model`` is not a module.

    Example:
        >>> with bensemble.sampling(bnn, torch.Generator().manual_seed(0)):
        ...     first, again = bnn(x), bnn(x)  # equal
    """
    from .posterior import layer_posteriors

    if not isinstance(model, nn.Module):
        raise InvalidTypeError(f"sampling: model must be a torch.nn.Module, got {type(model).__name__}.")
    layers: dict[int, nn.Module] = {}
    noise: dict[int, dict[str, Tensor]] = {}
    drawn: dict[int, Tensor] = {}  # tied weights share one draw
    for layer, posteriors in layer_posteriors(model):
        layers[id(layer)] = layer
        for posterior in posteriors:
            key = id(posterior.mu)
            if key not in drawn:
                drawn[key] = posterior.draw_noise(generator)
            noise.setdefault(id(layer), {})[posterior.stem] = drawn[key]
    with _open(Frame(layers, noise)):
        yield


@contextmanager
def mean_mode(model: nn.Module) -> Iterator[None]:
    """Every Bayesian layer in ``model`` computes with its posterior mean until the context ends, in train mode too."""
    with _open(Frame({id(module): module for module in model.modules()}, None)):
        yield
