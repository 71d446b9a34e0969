"""The weight samples of a whole data set: drawn in order, the same for every batch, in bounded memory."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from .batches import device_of
from .frames import Frame, draw_frame
from .moment_model import MomentModel
from .posterior import named_posteriors

__all__ = ["HELD_BYTES", "WeightSamples"]

#: Samples are held between batches up to this size; above it they are drawn anew for each batch, from the same state.
HELD_BYTES = 2**30


class WeightSamples:
    """A model and its weight samples.

    Args:
        model: Any module; one without posteriors has one sample, its weights, and a moment model has its points.
        num_samples: Number of samples.
        generator: Source of the noise; default a generator seeded from torch's default one.
        several: Whether samples are asked for more than once.
    """

    def __init__(self, model: nn.Module, num_samples: int, generator: torch.Generator | None, several: bool) -> None:
        self.model, self.device = model, device_of(model)
        rhos = {id(p.rho): p.rho for _, p in named_posteriors(model)}.values()
        self.bayesian = bool(rhos) or isinstance(model, MomentModel)
        self.count = model.num_points if isinstance(model, MomentModel) else num_samples if rhos else 1
        if generator is None and rhos:
            generator = torch.Generator(self.device).manual_seed(int(torch.randint(2**62, ())))
        self._generator = generator
        # A sample is its noise and the weights made of it.
        self._hold = several and 2 * num_samples * sum(rho.numel() * rho.element_size() for rho in rhos) <= HELD_BYTES
        self._states: list[Tensor] = []
        self._frames: list[Frame] = []

    def frame(self, index: int) -> Frame | None:
        """The weight sample of an index, first asked for in order; None for a deterministic model."""
        if not self.bayesian or self._generator is None:
            return None
        if index < len(self._frames):
            return self._frames[index]
        if index < len(self._states):
            # Drawn again for a later batch; after the last index the generator is where the first batch left it.
            self._generator.set_state(self._states[index])
            return draw_frame(self.model, self._generator)
        self._states.append(self._generator.get_state())
        frame = draw_frame(self.model, self._generator)
        if self._hold:
            self._frames.append(frame)
        return frame
