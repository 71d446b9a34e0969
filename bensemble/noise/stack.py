"""One weight sample for a whole model, held for as long as a context is open.

Inside ``with sampling(model):`` every forward uses the weights ``mu + sigma * eps`` with ``eps`` drawn on entry, so
that the model is one function for every batch: what prediction, Thompson sampling and active learning need.

The noise lives on a thread-local stack, keyed by layer, and never on the layers: contexts nest, threads do not see
each other, and a deepcopy or pickle taken inside is an ordinary Bayesian model.
"""

from __future__ import annotations

import threading
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..checks import check_module
from ..kernels.blocks import version
from ..models.sharding import holds_shards
from ..posterior import Posterior, layer_posteriors
from .draws import random_draw, read_only
from .recomputation import frame_of_first_run, is_second_run, note_forward, noted, seed_of_first_run

if TYPE_CHECKING:
    from ..layers.linear_op import LinearOpLayer

__all__ = [
    "Frame",
    "active_frame",
    "draw_frame",
    "forward_of_first_run",
    "mean_mode",
    "one_draw",
    "open_frame",
    "sampling",
    "warn_where_not_held",
]


class Frame:
    """What one open context says about some layers.

    Attributes:
        layers: The layers the frame speaks about, by identity. Holding them keeps the identities valid.
        noise: Standard normal noise by layer identity and stem; None for a frame that asks for the mean.
        keeps_values: Whether a sample may be kept for as long as its tensors are unchanged, as they say themselves.
    """

    def __init__(
        self,
        layers: dict[int, nn.Module],
        noise: dict[tuple[int, str], Tensor] | None,
        keeps_values: bool = True,
    ) -> None:
        self.layers = layers
        self.noise = noise
        self.keeps_values = keeps_values
        self._values: dict[tuple[int, str], tuple[_Source, Tensor]] = {}

    @property
    def is_mean(self) -> bool:
        """Whether the frame asks for the posterior mean instead of a sample."""
        return self.noise is None

    def noise_of(self, posterior: Posterior) -> Tensor:
        """The noise held for one posterior."""
        assert self.noise is not None
        return self.noise[id(posterior.layer), posterior.stem]

    def sample(self, posterior: Posterior) -> Tensor:
        """The weight of this frame, ``mu + sigma * eps``, differentiable in mu and rho when grad is enabled."""
        noise = self.noise_of(posterior)
        if not self.keeps_values or torch.is_grad_enabled() or torch.compiler.is_compiling():
            return posterior.draw(noise)
        if posterior.mu.is_inference():
            return posterior.draw(noise)
        # Without gradients the value is kept, as long as nobody replaces or updates the tensors it came from.
        source = _Source((posterior.mu, posterior.rho, posterior.mask))
        key = (id(posterior.layer), posterior.stem)
        if key not in self._values or self._values[key][0] != source:
            self._values[key] = (source, posterior.draw(noise))
        return self._values[key][1]

    def run(self, layer: LinearOpLayer, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """What a layer that is linear in its weights makes of its input under this frame."""
        weight, bias = (layer._held(self, name) for name in ("weight", "bias"))
        return layer.linear_op(weight, bias, input, *args, **kwargs)  # type: ignore[arg-type]

    def read(self, posterior: Posterior) -> Tensor:
        """The sample as ``.weight`` gives it: read-only."""
        if torch.is_grad_enabled():
            return random_draw(posterior, lambda: self.noise_of(posterior))
        return read_only(posterior, lambda: self.sample(posterior))


class _Source:
    """Which tensors a value was computed from, and which contents of theirs. Holding them keeps identities valid."""

    def __init__(self, tensors: tuple[Tensor | None, ...]) -> None:
        self.tensors = tensors
        self.versions = [None if t is None else version(t) for t in tensors]

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, _Source) or self.versions != other.versions:
            return False
        return all(mine is its for mine, its in zip(self.tensors, other.tensors, strict=True))


class ForwardFrame(Frame):
    """One forward of one layer: every read of a weight sees the same draw.

    All noise follows from one number, which comes from torch's default generator when the forward begins. So a part of
    the forward that is checkpointed sees the same noise when it runs again, wherever the weight was read first.

    Args:
        layer: The layer.
        seed: The number, where it is known.
    """

    def __init__(self, layer: nn.Module, seed: int | None = None) -> None:
        super().__init__({id(layer): layer}, {})
        self.seed = int(torch.randint(2**62, (), device="cpu")) if seed is None else seed
        self._reads: dict[str, Tensor] = {}

    def noise_of(self, posterior: Posterior) -> Tensor:
        """The noise of this forward, drawn on demand."""
        assert self.noise is not None
        key = (id(posterior.mu), "")  # one weight may have two names in its layer
        if key not in self.noise:
            self.noise[key] = self._drawn(posterior)
        return self.noise[key]

    def _drawn(self, posterior: Posterior) -> Tensor:
        rho = posterior.rho
        # A captured graph would replay the same number for ever.
        captured = rho.is_cuda and torch.cuda.is_current_stream_capturing()
        if captured or rho.is_meta or type(rho) not in (nn.Parameter, Tensor):
            return posterior.draw_noise()
        place = next(i for i, other in enumerate(posterior.layer._posteriors()) if other.mu is posterior.mu)
        return posterior.draw_noise(torch.Generator(rho.device).manual_seed(self.seed + place))

    def read(self, posterior: Posterior) -> Tensor:
        """The draw of this forward, one tensor however often it is read."""
        if posterior.stem not in self._reads:
            self._reads[posterior.stem] = super().read(posterior)
        return self._reads[posterior.stem]


_local = threading.local()


def _frames() -> list[Frame]:
    """The open frames of this thread, innermost last."""
    frames: list[Frame] | None = getattr(_local, "frames", None)
    if frames is None:
        frames = _local.frames = []
    return frames


def active_frame(layer: nn.Module) -> Frame | None:
    """The innermost frame of this thread that speaks about the layer, or the one of its first run during backward."""
    frames: list[Frame] | None = getattr(_local, "frames", None)
    second = is_second_run()
    if frames:
        key = id(layer)
        for frame in reversed(frames):
            if key in frame.layers and not (second and not isinstance(frame, ForwardFrame)):
                return frame
    return frame_of_first_run(layer) if second else None


def forward_of_first_run(layer: nn.Module) -> ForwardFrame | None:
    """The forward of a layer of which a checkpointed part runs again during backward, None at all other times."""
    seed = seed_of_first_run(layer) if is_second_run() else None
    return None if seed is None else ForwardFrame(layer, seed)


@contextmanager
def open_frame(frame: Frame) -> Iterator[None]:
    """Put a frame on this thread's stack until the context ends."""
    with _on_stack(frame), noted(frame):
        yield


@contextmanager
def one_draw(layer: nn.Module) -> Iterator[None]:
    """All reads of a weight of the layer see one draw until the context ends."""
    frame, first = ForwardFrame(layer), torch.autograd._get_sequence_nr()  # type: ignore[attr-defined]
    try:
        with _on_stack(frame):
            yield
    finally:
        note_forward(layer, first, frame.seed)


@contextmanager
def _on_stack(frame: Frame) -> Iterator[None]:
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
    Contexts nest, the inner one wins; each thread has its own. Activation checkpointing runs forwards again during
    ``backward()``, which therefore belongs inside the context, in the same thread; elsewhere it is refused.

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
    with open_frame(draw_frame(model, generator)):
        yield


def draw_frame(model: nn.Module, generator: torch.Generator | None = None) -> Frame:
    """One weight sample of a whole model, which :func:`open_frame` may open more than once; see :func:`sampling`."""
    check_module("sampling", model)
    layers: dict[int, nn.Module] = {}
    noise: dict[tuple[int, str], Tensor] = {}
    drawn: dict[int, Tensor] = {}  # tied weights share one draw
    for layer, posteriors in layer_posteriors(model):
        layers[id(layer)] = layer
        for posterior in posteriors:
            key = id(posterior.mu)
            if key not in drawn:
                drawn[key] = posterior.draw_noise(generator)
            noise[id(layer), posterior.stem] = drawn[key]
            warn_where_not_held(posterior)
    return Frame(layers, noise, keeps_values=not holds_shards(model))


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


@contextmanager
def mean_mode(model: nn.Module) -> Iterator[None]:
    """Every Bayesian layer in ``model`` computes with its posterior mean until the context ends, in train mode too."""
    with open_frame(Frame({id(module): module for module in model.modules()}, None)):
        yield
