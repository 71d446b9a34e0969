"""The weight samples of a whole data set: drawn in order, the same for every batch, in bounded memory.

Where the network is small for its weights, drawing them is most of the cost. So sigma is computed once for all
samples, and a sample is one pass over the weights, into the memory of its own noise.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from ..gaussian import precise, reparameterized
from ..models.batches import device_of
from ..noise.lazy_weights import read_only
from ..noise.stack import HeldSample
from ..posterior import Posterior
from ..posteriors import bayesian_layers
from .contexts import warn_where_not_held

__all__ = ["HELD_BYTES", "HeldWeights", "WeightSamples"]

#: Samples are held between batches up to this size; above it they are drawn anew for each batch, from the same state.
HELD_BYTES = 2**30


class HeldWeights(HeldSample):
    """One weight sample of a whole model, held as values: what prediction needs, without gradients.

    Args:
        layers: The layers by identity.
        weights: The weight of each posterior by layer identity and stem.
    """

    may_run_again = False

    def __init__(self, layers: dict[int, nn.Module], weights: dict[tuple[int, str], Tensor]) -> None:
        super().__init__(layers, {})
        self.weights = weights

    def weight(self, posterior: Posterior) -> Tensor:
        """The weight of this sample."""
        return self.weights[id(posterior.layer), posterior.stem]

    def read(self, posterior: Posterior) -> Tensor:
        """The sample as ``.weight`` gives it: read-only."""
        return read_only(posterior, lambda: self.weight(posterior))


class WeightSamples:
    """A model and its weight samples, of a posterior that does not change meanwhile.

    Args:
        model: Any module; one without posteriors has one sample, its weights.
        num_samples: Number of samples.
        generator: Source of the noise; default a generator seeded from torch's default one.
        several: Whether samples are asked for more than once.
    """

    def __init__(self, model: nn.Module, num_samples: int, generator: torch.Generator | None, several: bool) -> None:
        self.model, self.device = model, device_of(model)
        self._layers: dict[int, nn.Module] = {}
        self._posteriors: dict[int, list[Posterior]] = {}  # by identity of the mean: tied weights share one draw
        for _, layer in bayesian_layers(model):
            self._layers[id(layer)] = layer
            for posterior in layer._posteriors():
                self._posteriors.setdefault(id(posterior.mu), []).append(posterior)
                warn_where_not_held(posterior)
        self.bayesian = bool(self._posteriors)
        self.count = num_samples if self.bayesian else 1
        if generator is None and self.bayesian:
            generator = torch.Generator(self.device).manual_seed(int(torch.randint(2**62, ())))
        self.generator = generator
        size = sum(same[0].rho.numel() * same[0].rho.element_size() for same in self._posteriors.values())
        self._hold = several and num_samples * size <= HELD_BYTES
        self._states: list[Tensor] = []
        self._kept: list[HeldWeights] = []
        self._moments: list[tuple[list[Posterior], Tensor, Tensor]] | None = None

    @torch.no_grad()
    def sample(self, index: int) -> HeldWeights | None:
        """The weight sample of an index, first asked for in order; None for a deterministic model."""
        if not self.bayesian or self.generator is None:
            return None
        if index < len(self._kept):
            return self._kept[index]
        if index < len(self._states):
            # Drawn again for a later batch; after the last index the generator is where the first batch left it.
            self.generator.set_state(self._states[index])
            return self._draw()
        self._states.append(self.generator.get_state())
        drawn = self._draw()
        if self._hold:
            self._kept.append(drawn)
        return drawn

    def _draw(self) -> HeldWeights:
        weights: dict[tuple[int, str], Tensor] = {}
        for same, mean, sigma in self._mean_and_sigma():
            noise = same[0].draw_noise(self.generator)
            if same[0].basis is not None:
                weight = same[0].draw(noise)
            else:
                out = noise if noise.stride() == mean.stride() else None
                weight = reparameterized(mean, sigma, noise, out).to(same[0].mu.dtype)
            weights |= {(id(posterior.layer), posterior.stem): weight for posterior in same}
        return HeldWeights(self._layers, weights)

    def _mean_and_sigma(self) -> list[tuple[list[Posterior], Tensor, Tensor]]:
        """Every posterior under all its names, with mean and sigma, which are 0 where it is pruned."""
        if self._moments is None:
            self._moments = []
            for same in self._posteriors.values():
                sigma, mask = same[0].scale(), same[0].mask
                self._moments.append((same, precise(same[0].mean()), sigma if mask is None else sigma * mask))
        return self._moments
