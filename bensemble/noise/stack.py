"""Weight samples that are held for as long as a context is open, on a stack of each thread.

Inside ``with bensemble.sampling(model):`` every forward uses the weights ``mu + sigma * eps`` with ``eps`` drawn on
entry, so that the model is one function for every batch.

The noise lives on the stack, keyed by layer, and never on the layers: contexts nest, threads do not see each other, and
a deepcopy or pickle taken inside is an ordinary Bayesian model.
"""

from __future__ import annotations

import threading
from collections.abc import Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn

from ..posterior import Posterior
from ..torch_internals import version
from .lazy_weights import random_draw, read_only
from .recomputation import context_of_first_run, note_own_draw

__all__ = ["HeldSample", "active_sample", "holding", "mean_mode", "one_draw"]


class HeldSample:
    """One weight sample of some layers, or their mean, that a context holds.

    Attributes:
        layers: The layers that it holds a sample for, by identity. Holding them keeps the identities valid.
        noise: Standard normal noise by layer identity and stem; None where the mean is held.
        keeps_values: Whether a sample may be kept for as long as its tensors are unchanged, as they say themselves.
        is_open: Whether it is on a stack.
    """

    #: Whether a forward under it may run again during backward. Not where no gradients are taken.
    may_run_again = True

    def __init__(
        self,
        layers: dict[int, nn.Module],
        noise: dict[tuple[int, str], Tensor] | None,
        keeps_values: bool = True,
    ) -> None:
        self.layers = layers
        self.noise = noise
        self.keeps_values = keeps_values
        self.is_open = False
        self._values: dict[tuple[int, str], tuple[_Source, Tensor]] = {}

    @property
    def is_mean(self) -> bool:
        """Whether it is the posterior mean instead of a sample."""
        return self.noise is None

    def noise_of(self, posterior: Posterior) -> Tensor:
        """The noise held for one posterior."""
        assert self.noise is not None
        return self.noise[id(posterior.layer), posterior.stem]

    def weight(self, posterior: Posterior) -> Tensor:
        """The weight of this sample, ``mu + sigma * eps``, differentiable in mu and rho when grad is enabled."""
        noise = self.noise_of(posterior)
        if not self.keeps_values or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return posterior.draw(noise)
        if posterior.mu.is_inference():
            return posterior.draw(noise)
        # Without gradients the value is kept, as long as nobody replaces or updates the tensors it came from.
        basis = posterior.basis
        source = _Source((posterior.mu, posterior.rho, posterior.mask, None if basis is None else basis.outer))
        key = (id(posterior.layer), posterior.stem)
        if key not in self._values or self._values[key][0] != source:
            self._values[key] = (source, posterior.draw(noise))
        return self._values[key][1]

    def read(self, posterior: Posterior) -> Tensor:
        """The sample as ``.weight`` gives it: read-only."""
        if torch.is_grad_enabled():
            return random_draw(posterior, lambda: self.noise_of(posterior))
        return read_only(posterior, lambda: self.weight(posterior))


class _Source:
    """Which tensors a value was computed from, and which contents of theirs. Holding them keeps identities valid."""

    def __init__(self, tensors: tuple[Tensor | None, ...]) -> None:
        self.tensors = tensors
        self.versions = [None if t is None else version(t) for t in tensors]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Source) or self.versions != other.versions:
            return False
        return all(mine is its for mine, its in zip(self.tensors, other.tensors, strict=True))


class ForwardSample(HeldSample):
    """One forward of one layer: every read of a weight sees the same draw, made when it is first read.

    Args:
        layer: The layer.
    """

    may_run_again = False  # a layer that runs again as a whole draws again, with the random numbers of its first run

    def __init__(self, layer: nn.Module) -> None:
        super().__init__({id(layer): layer}, {})
        self._reads: dict[str, Tensor] = {}

    def noise_of(self, posterior: Posterior) -> Tensor:
        """The noise of this forward, drawn on demand."""
        assert self.noise is not None
        key = (id(posterior.mu), "")  # one weight may have two names in its layer
        if key not in self.noise:
            self.noise[key] = posterior.draw_noise()
        return self.noise[key]

    def read(self, posterior: Posterior) -> Tensor:
        """The draw of this forward, one tensor however often it is read."""
        if posterior.stem not in self._reads:
            self._reads[posterior.stem] = super().read(posterior)
        return self._reads[posterior.stem]


_local = threading.local()


def active_sample(layer: nn.Module) -> HeldSample | None:
    """What the innermost open context of this thread holds for the layer; None without one.

    A forward that runs again during backward gets what it had in its first run.
    """
    found = None
    samples: list[HeldSample] | None = getattr(_local, "samples", None)
    if samples:
        key = id(layer)
        found = next((held for held in reversed(samples) if key in held.layers), None)
        if found is not None and not found.may_run_again:
            return found
    return found if torch.compiler.is_compiling() else context_of_first_run(layer, found)


@contextmanager
def holding(held: HeldSample) -> Iterator[None]:
    """Hold a sample on the stack of this thread until the context ends."""
    samples: list[HeldSample] | None = getattr(_local, "samples", None)
    if samples is None:
        samples = _local.samples = []
    samples.append(held)
    held.is_open = True
    try:
        yield
    finally:
        samples.remove(held)
        held.is_open = held in samples


@contextmanager
def one_draw(layer: nn.Module) -> Iterator[None]:
    """All reads of a weight of the layer see one draw until the context ends."""
    note_own_draw(layer)
    with holding(ForwardSample(layer)):
        yield


@contextmanager
def mean_mode(model: nn.Module) -> Iterator[None]:
    """Every Bayesian layer in ``model`` computes with its posterior mean until the context ends, in train mode too."""
    with holding(HeldSample({id(module): module for module in model.modules()}, None)):
        yield
