"""A handle on one Gaussian weight, and the walk over all of them.

The tensors live on the layer, as ``<stem>_mu``, ``<stem>_rho``, ``<stem>_mask`` and the tensors of the prior. The
handle reads them afresh each time, so it stays right under ``.to()``, ``functional_call`` and deepcopy.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from .errors import ConversionError, InvalidValueError
from .gaussian import precise, sigma_from_rho, snr, standard_normal_like
from .kernels import applies_to, fused_kl
from .models.sharding import PartialSums, is_sharded, part_here, part_of, whole
from .priors import ARD, Normal, kl_to

if TYPE_CHECKING:
    from .layers.weights import PosteriorWeights

__all__ = ["Posterior", "layer_posteriors", "named_posteriors", "parameter_of"]

#: How modules answer for their Parameters, unless somebody stands in between, as torch.fx does while it traces.
_UNWATCHED = nn.Module.__getattr__


def parameter_of(layer: nn.Module, key: str) -> Any:
    """A Parameter of a layer in a third of the time that attributes take; None without one.

    The attribute has the last word where something else stands in the Parameter's place, and while torch.fx traces.
    """
    found = layer._parameters.get(key) if nn.Module.__getattr__ is _UNWATCHED else None
    return getattr(layer, key, None) if found is None else found


@dataclass(frozen=True, repr=False)
class Posterior:
    """The posterior N(mu, sigma^2) of one weight tensor of one layer.

    Attributes:
        layer: The layer that holds the tensors.
        name: The parameter's name in the deterministic module, such as ``weight``.
        stem: Prefix of its tensors on the layer, such as ``w`` for ``w_mu`` and ``w_rho``.
        ties: The same posterior as other layers hold it; filled in by :func:`named_posteriors`.
    """

    layer: PosteriorWeights
    name: str
    stem: str
    ties: tuple[Posterior, ...] = ()

    @property
    def mu(self) -> Tensor:
        """Posterior mean: the Parameter itself, pruned entries included."""
        return parameter_of(self.layer, f"{self.stem}_mu")

    @property
    def rho(self) -> Tensor:
        """Sigma = softplus(rho); float32 unless the weights are float64."""
        return parameter_of(self.layer, f"{self.stem}_rho")

    @property
    def mask(self) -> Tensor | None:
        """1 where a weight is kept and 0 where it is pruned, shape of mu; None when nothing is pruned."""
        key = f"{self.stem}_mask"
        mask = self.layer._buffers.get(key)
        return getattr(self.layer, key, None) if mask is None else mask

    @property
    def prior(self) -> Any:
        """The prior of this tensor."""
        return self.layer._prior_of(self.stem)

    @property
    def prunable(self) -> bool:
        """Whether a zero mean is a zero in the weight that reaches the operation."""
        return self.layer._is_prunable(self.stem)

    def sigma(self) -> Tensor:
        """Posterior standard deviation in float32 or float64, differentiable; pruned entries keep theirs."""
        return sigma_from_rho(whole(self.rho))

    def mean(self) -> Tensor:
        """Mean weight as the network uses it: mu, and zero where it is pruned."""
        mu, mask = whole(self.mu), self.mask
        return mu if mask is None else mu * mask.to(mu.dtype)

    def variance(self) -> Tensor:
        """sigma^2 in the precise dtype, zero where the weight is pruned."""
        variance, mask = self.sigma().square(), self.mask
        return variance if mask is None else variance * mask

    def snr(self) -> Tensor:
        """Signal-to-noise ratio |mu| / sigma; 0 where the weight is pruned."""
        ratio, mask = snr(whole(self.mu), self.sigma()), self.mask
        return ratio if mask is None else ratio * mask

    def kl(self) -> Tensor:
        """KL to the prior in nats, summed over the weights that are not pruned; scalar in the precise dtype."""
        sums = PartialSums(self.mu.device)
        self.add_kl(sums)
        return sums.total()

    def add_kl(self, sums: PartialSums) -> None:
        """Add the KL to a sum; of a sharded weight that of the part here, if its prior is known to sum over weights."""
        self._check_shapes()
        mu, prior, mask = self.mu, self.prior, self.mask
        by_parts = is_sharded(mu) and type(prior) in (Normal, ARD)
        here = part_here if by_parts else whole
        own_mu, own_rho = here(mu), here(self.rho)
        keep = mask.bool() if mask is not None else None

        def cut(per_weight: Tensor) -> Tensor:
            own = part_of(per_weight, like=mu) if by_parts else per_weight
            return own if keep is None else own[keep]

        if by_parts or keep is not None:
            keep = part_of(keep, like=mu) if by_parts and keep is not None else keep
            prior = self.layer._prior_of(self.stem, cut)
        sums.add(_kl(prior, own_mu, own_rho, keep), of=mu if by_parts else None)

    def draw_noise(self, generator: torch.Generator | None = None) -> Tensor:
        """Standard normal noise in the shape and precise dtype of mu."""
        self._check_shapes()
        rho = self.rho
        if generator is None and is_sharded(rho):
            return torch.randn(rho.shape, device=rho.device, dtype=rho.dtype)
        if generator is None:
            return standard_normal_like(rho.detach())
        noise = torch.randn(rho.shape, generator=generator, device=generator.device, dtype=rho.dtype)
        return noise.to(rho.device)

    def draw(self, noise: Tensor) -> Tensor:
        """The weight mu + sigma * noise in the dtype of mu, zero where it is pruned; differentiable in mu and rho."""
        mu, mask = whole(self.mu), self.mask
        weight = torch.addcmul(precise(mu), self.sigma(), noise).to(mu.dtype)
        return weight if mask is None else weight * mask.to(mu.dtype)

    def set_mask(self, mask: Tensor | None) -> None:
        """Prune where ``mask`` is 0: the weight reads as zero from here on, and mu is set to zero there.

        Args:
            mask: Zeros and ones in the shape of mu, or None to lift the mask.
        """
        for posterior in (self, *self.ties):
            posterior.layer._set_mask(posterior.stem, mask)

    def _check_shapes(self) -> None:
        """Raise where code for deterministic models has resized the mean alone, past the layer's own assignment."""
        mu, rho = self.mu, self.rho
        if mu.shape != rho.shape:
            raise ConversionError(
                f"resize: '{self.name}' of {type(self.layer).__name__} has a posterior of shape {tuple(rho.shape)}, "
                f"got a mean of shape {tuple(mu.shape)}; call to_deterministic first, resize, then bayesify again."
            )

    def __repr__(self) -> str:
        return f"Posterior({self.name}, shape={tuple(self.mu.shape)}, prior={self.prior})"


def _kl(prior: Any, mu: Tensor, rho: Tensor, keep: Tensor | None) -> Tensor:
    """KL of plain tensors to a prior, over the weights in ``keep``."""
    if keep is not None:
        return kl_to(prior, precise(mu)[keep], sigma_from_rho(rho)[keep])
    fused = fused_kl(mu, rho, prior) if applies_to(mu, rho) else None
    return kl_to(prior, precise(mu), sigma_from_rho(rho)) if fused is None else fused


def layer_posteriors(model: nn.Module) -> Iterator[tuple[PosteriorWeights, list[Posterior]]]:
    """Every Bayesian layer below ``model`` once, with its posteriors."""
    from .layers.weights import PosteriorWeights

    for module in model.modules():
        if isinstance(module, PosteriorWeights):
            yield module, list(module._posteriors())


def named_posteriors(model: nn.Module) -> Iterator[tuple[str, Posterior]]:
    """Every distinct posterior of the model, under the original name of its weight, such as ``fc.weight``.

    A posterior that several layers share comes once, under the first name.
    """
    from .layers.weights import PosteriorWeights

    found: dict[int, list[tuple[str, Posterior]]] = {}
    for path, module in model.named_modules():
        if isinstance(module, PosteriorWeights):
            for posterior in module._posteriors():
                name = f"{path}.{posterior.name}" if path else posterior.name
                found.setdefault(id(posterior.mu), []).append((name, posterior))
    for (name, first), *others in found.values():
        yield name, replace(first, ties=tuple(other for _, other in others)) if others else first


def check_mask(verb: str, name: str, mask: Tensor, shape: torch.Size) -> None:
    """Raise unless the mask has the given shape and holds zeros and ones only."""
    if mask.shape != shape:
        raise InvalidValueError(
            f"{verb}: mask of '{name}' must have shape {tuple(shape)}, got {tuple(mask.shape)}; "
            "pass one entry per weight."
        )
    if not bool(((mask == 0) | (mask == 1)).all()):
        raise InvalidValueError(f"{verb}: mask of '{name}' must hold zeros and ones only; pass 1 to keep, 0 to prune.")
