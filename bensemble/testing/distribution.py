"""Contracts of the posterior: its KL to the prior, and pruning."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor
from torch.distributions import Normal as TorchNormal
from torch.distributions import kl_divergence
from torch.testing import assert_close

from ..posterior import Posterior
from ..prediction.contexts import sampling
from ..priors import Normal
from .case import Case, require, require_equal

__all__ = ["CONTRACTS"]


def kl(case: Case) -> None:
    """The KL equals that of torch.distributions: to 1e-6 in float64, in float32 to 1e-5 of the sum of absolute terms.

    Layers with another prior than a normal one are not checked.
    """
    for dtype in (torch.float64, torch.float32):
        layer = case.layer().to(dtype)
        if not all(isinstance(posterior.prior, Normal) for posterior in layer.posteriors()):
            return
        terms = torch.cat([_kl_terms(posterior).flatten() for posterior in layer.posteriors()])
        size = 1e-6 * terms.sum().abs() if dtype is torch.float64 else 1e-5 * terms.abs().sum()
        found = layer.kl_divergence()
        require(found.dim() == 0 and found.dtype is dtype, f"the KL in {dtype} is {found.dtype}, {tuple(found.shape)}")
        assert_close(found.double(), terms.sum(), rtol=0, atol=float(size))


def masks(case: Case) -> None:
    """Pruned weights are zero in every state, also after further training; all Parameters stay finite."""
    layer, twin = case.pair()
    x = case.make_input()
    kept = {posterior.stem: torch.rand_like(posterior.mu) < 0.5 for posterior in layer.posteriors()}
    for posterior in layer.posteriors():
        posterior.set_mask(kept[posterior.stem].float())
    if all(isinstance(posterior.prior, Normal) for posterior in layer.posteriors()):
        counted = [torch.ones_like(k) if p.basis else k for p, k in zip(layer.posteriors(), kept.values(), strict=True)]
        terms = torch.cat([_kl_terms(p)[c] for p, c in zip(layer.posteriors(), counted, strict=True)])
        assert_close(layer.kl_divergence().double(), terms.sum(), rtol=0, atol=1e-5 * float(terms.abs().sum()))
    optimizer = torch.optim.AdamW(layer.parameters(), lr=0.1)
    for _ in range(10):
        optimizer.zero_grad()
        (layer(x).square().mean() + layer.kl_divergence()).backward()
        optimizer.step()
    for posterior in layer.posteriors():
        pruned = ~kept[posterior.stem]
        require(bool((posterior.mu[pruned] == 0).all()), f"training brought pruned entries of {posterior.name} back")
        require(bool((posterior.snr()[pruned] == 0).all()), f"pruned entries of {posterior.name} have an SNR")
        finite = posterior.mu.isfinite().all() & posterior.rho.isfinite().all()
        require(bool(finite), f"training after pruning made {posterior.name} infinite")
        if twin is not None:
            for state in ("train()", "eval()", "sampling"):
                with sampling(layer.train(state == "train()")) if state == "sampling" else torch.enable_grad():
                    read = getattr(layer, posterior.name)
                    require(bool((read[pruned] == 0).all()), f"pruned entries of {posterior.name} are not 0 in {state}")
    for key, mask in layer.get_pruning_masks(0.0).items():
        require_equal(mask.bool(), kept[key.removesuffix("_mu")], f"{key} before and after get_pruning_masks(0)")
    pruned_share = 1 - sum(int(k.sum()) for k in kept.values()) / sum(k.numel() for k in kept.values())
    assert_close(layer.apply_pruning(0.0), pruned_share)
    require(layer.apply_pruning(math.inf) == 1.0, "an infinite threshold keeps weights")
    if twin is not None:
        noise = float((layer.train()(x) - layer.eval()(x)).detach().abs().max())
        require(noise < 1e-12, f"a training forward has noise of {noise:g} where every weight is pruned")


def _kl_terms(posterior: Posterior) -> Tensor:
    """KL of each weight, or each coordinate in a rotated basis, by torch.distributions, in float64."""
    mean, sigma = (torch.as_tensor(v).double() for v in (posterior.prior.mean, posterior.prior.sigma))
    distance, basis = posterior.mu.double() - mean, posterior.basis
    with torch.no_grad():
        if basis is not None:
            distance = basis.double().from_plain(distance)
        return kl_divergence(TorchNormal(distance, posterior.scale().double()), TorchNormal(0.0 * mean, sigma))


CONTRACTS: dict[str, Callable[[Case], None]] = {"kl": kl, "masks": masks}
