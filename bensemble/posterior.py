"""The posterior of one weight tensor: a handle that reads its tensors from the layer.

The layer holds the tensors, as ``<stem>_mu``, ``<stem>_rho``, ``<stem>_mask`` and the tensors of the prior. The handle
reads them again at each access, so it is still valid after ``.to()``, ``functional_call`` and deepcopy.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .basis import Basis
from .errors import ConversionError, InvalidTypeError
from .gaussian import precise, reparameterized, sigma_from_rho, snr, standard_normal_like
from .kernels import applies_to, fused_kl
from .models.sharding import PartialSums, is_sharded, part_here, part_of, whole
from .priors import ARD, Normal, kl_to
from .torch_internals import buffers_of, parameter_of

__all__ = ["Posterior", "mask_problem"]


@dataclass(frozen=True, repr=False)
class Posterior:
    """The posterior N(mu, sigma^2) of one weight tensor of one layer.

    Attributes:
        layer: The layer that holds the tensors.
        name: Name of the parameter in the deterministic module, such as ``weight``.
        stem: Prefix of its tensors on the layer, such as ``w`` for ``w_mu`` and ``w_rho``.
        ties: Handles on the same posterior in other layers, as :func:`bensemble.named_posteriors` finds them.

    Example:
        >>> sigma = dict(bensemble.named_posteriors(bnn))["5.weight"].sigma()
    """

    layer: Any  # a bensemble.layers.storage.PosteriorStorage, which imports this module
    name: str
    stem: str
    ties: tuple[Posterior, ...] = ()

    @property
    def mu(self) -> Tensor:
        """Posterior mean: the Parameter itself, pruned entries included."""
        return parameter_of(self.layer, f"{self.stem}_mu")

    @property
    def rho(self) -> Tensor:
        """The Parameter that sigma = softplus(rho) is computed from; float32 unless the weights are float64."""
        return parameter_of(self.layer, f"{self.stem}_rho")

    @property
    def mask(self) -> Tensor | None:
        """1 where a weight is kept and 0 where it is pruned, in the shape of mu; None without pruning."""
        return buffers_of(self.layer).get(f"{self.stem}_mask")

    @property
    def basis(self) -> Basis | None:
        """The basis in which rho is one number per independent element; None for the plain one."""
        buffers = buffers_of(self.layer)
        outer = buffers.get(f"{self.stem}_basis_outer")
        return None if outer is None else Basis(outer, buffers.get(f"{self.stem}_basis_inner"))

    @property
    def prior(self) -> Any:
        """The prior of this tensor."""
        return self.layer._prior_of(self.stem)

    @property
    def prunable(self) -> bool:
        """Whether a zero in the mean is a zero in the weight that the layer uses."""
        return self.layer._is_prunable(self.stem)

    def scale(self) -> Tensor:
        """Standard deviation of every coordinate in the posterior's own basis, differentiable; not masked."""
        return sigma_from_rho(whole(self.rho))

    def sigma(self) -> Tensor:
        """Standard deviation of every weight in float32 or float64, differentiable; not masked."""
        scale, basis = self.scale(), self.basis
        return scale if basis is None else basis.variance(scale.square()).sqrt()

    def mean(self) -> Tensor:
        """Mean weight: mu, and zero where it is pruned."""
        mu, mask = whole(self.mu), self.mask
        return mu if mask is None else mu * mask.to(mu.dtype)

    def variance(self) -> Tensor:
        """sigma^2 in float32 or float64, zero where the weight is pruned."""
        variance, mask = self.sigma().square(), self.mask
        return variance if mask is None else variance * mask

    def snr(self) -> Tensor:
        """Signal-to-noise ratio |mu| / sigma; 0 where the weight is pruned."""
        ratio, mask = snr(whole(self.mu), self.sigma()), self.mask
        return ratio if mask is None else ratio * mask

    def kl(self) -> Tensor:
        """KL to the prior in nats, summed over the weights that are not pruned; a scalar in float32 or float64."""
        sums = PartialSums(self.mu.device)
        self.add_kl(sums)
        return sums.total()

    def add_kl(self, sums: PartialSums) -> None:
        """Add the KL to ``sums``: of a sharded weight only the local part, if its prior is a sum over weights."""
        self._check_shapes()
        mu, prior, mask = self.mu, self.prior, self.mask
        if self.basis is not None:
            sums.add(self._rotated_kl(self.basis), of=None)
            return
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

    def _rotated_kl(self, basis: Basis) -> Tensor:
        """KL to a normal prior with one standard deviation; a mask, which acts on plain weights, changes nothing."""
        prior = self.prior
        if type(prior) is not Normal or not prior.is_constant:
            raise InvalidTypeError(
                f"kl: '{self.name}' has a posterior in a rotated basis, which needs a normal prior with one standard "
                f"deviation, got {prior}; call set_prior with 'normal', 'empirical' or 'pretrained', or set_posterior "
                "with plain sigmas."
            )
        distance = basis.from_plain(precise(self.mean()) - prior.mean)
        return Normal(prior.sigma).kl(distance, self.scale())

    def draw_noise(self, generator: torch.Generator | None = None) -> Tensor:
        """Standard normal noise in the shape and dtype of rho."""
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
        mu, mask, basis = whole(self.mu), self.mask, self.basis
        if basis is None:
            weight = reparameterized(mu, self.scale(), noise).to(mu.dtype)
        else:
            weight = (precise(mu) + basis.to_plain(self.scale() * noise)).to(mu.dtype)
        return weight if mask is None else weight * mask.to(mu.dtype)

    def set_basis(self, basis: Basis | None) -> None:
        """Say in which basis rho stands; None for the plain one."""
        for posterior in (self, *self.ties):
            posterior.layer._set_basis(posterior.stem, basis)

    def set_mask(self, mask: Tensor | None) -> None:
        """Prune where ``mask`` is 0: the weight reads as zero there, and mu is set to zero.

        Args:
            mask: Zeros and ones in the shape of mu, or None to remove the mask.
        """
        for posterior in (self, *self.ties):
            posterior.layer._set_mask(posterior.stem, mask)

    def _check_shapes(self) -> None:
        """Raise if mu and rho differ in shape, because code for deterministic models has resized the mean alone."""
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


def mask_problem(name: str, mask: Any, shape: torch.Size) -> str | None:
    """What is wrong with a pruning mask for a weight of this shape; None if nothing is."""
    if not isinstance(mask, Tensor):
        return f"mask of '{name}' must be a tensor, got {type(mask).__name__}."
    if mask.shape != shape:
        return f"mask of '{name}' must have shape {tuple(shape)}, got {tuple(mask.shape)}; pass one entry per weight."
    if not bool(((mask == 0) | (mask == 1)).all()):
        return f"mask of '{name}' must hold zeros and ones only; pass 1 to keep, 0 to prune."
    return None
