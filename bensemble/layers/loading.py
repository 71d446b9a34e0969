"""Which state dicts a Bayesian layer accepts: its own, the deterministic module's, and published ones.

A deterministic checkpoint replaces the means; sigmas, masks and priors stay. A published checkpoint has only
``*_mu`` and ``*_rho``, and marks pruned weights with a hugely negative rho: that becomes a mask.
"""

from __future__ import annotations

import threading
import warnings
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from ..gaussian import RHO_MIN, precise
from ..models.sharding import sharded_like, whole

if TYPE_CHECKING:
    from .weights import PosteriorWeights

__all__ = ["adapt_state_dict"]

_last = threading.local()


def adapt_state_dict(layer: PosteriorWeights, state_dict: Any, prefix: str, args: tuple[Any, ...]) -> dict[str, Any]:
    """The part of ``state_dict`` below ``prefix`` in the names that the layer has right now.

    Args:
        layer: The layer about to load; gains or drops mask buffers to match.
        state_dict: What the user loads; not changed.
        prefix: Path of the layer, with its dot.
        args: The further arguments of ``nn.Module._load_from_state_dict``.

    Returns:
        A new dictionary.
    """
    own = {key: value for key, value in state_dict.items() if key.startswith(prefix)}
    for posterior in layer._posteriors():
        mu_key, rho_key, mask_key = (f"{prefix}{posterior.stem}_{part}" for part in ("mu", "rho", "mask"))
        name_key = prefix + posterior.name
        if mu_key not in own and name_key in own:
            own[mu_key] = own.pop(name_key)
            if not posterior.rho.is_meta:  # nothing to keep there: then the key is missing
                own.setdefault(rho_key, posterior.rho)
            if posterior.mask is not None:
                own.setdefault(mask_key, posterior.mask)
            _warn_once(args[2], name_key)
        if isinstance(own.get(rho_key), Tensor):
            _pruned_rho_to_mask(own, mu_key, rho_key, mask_key)
        if mu_key in own:
            _match_mask(layer, posterior.stem, mask_key in own)
        for field, value in layer.named_buffers(recurse=False):
            if field.startswith(f"{posterior.stem}_prior_"):
                own.setdefault(prefix + field, value)
    return own


def _pruned_rho_to_mask(own: dict[str, Any], mu_key: str, rho_key: str, mask_key: str) -> None:
    """Turn entries of rho below ``RHO_MIN`` into a mask, and give them the mean rho of the entries that are kept."""
    loaded = own[rho_key].detach()
    if loaded.is_meta or not bool(whole((precise(loaded) < RHO_MIN).any())):
        return
    rho = whole(loaded)
    pruned = precise(rho) < RHO_MIN
    keep = ~pruned
    rest = precise(rho)[keep].mean() if bool(keep.any()) else torch.zeros(())
    own[rho_key] = sharded_like(torch.where(pruned, rest.to(rho), rho), like=loaded)
    own[mask_key] = own.get(mask_key, 1.0) * keep.to(rho.dtype)
    if isinstance(own.get(mu_key), Tensor) and own[mu_key].shape == keep.shape:
        mu = own[mu_key].detach()
        own[mu_key] = mu * sharded_like(keep.to(mu.dtype), like=mu)


def _match_mask(layer: PosteriorWeights, stem: str, wanted: bool) -> None:
    """Give the layer a mask buffer to load into, or take the one away that the checkpoint does not have."""
    mask = getattr(layer, f"{stem}_mask", None)
    if wanted and mask is None:
        rho = precise(getattr(layer, f"{stem}_rho").detach())
        ones = torch.ones(rho.shape, device=rho.device, dtype=rho.dtype)  # whole in every process, as every buffer
        nn.Module.register_buffer(layer, f"{stem}_mask", ones)
    elif not wanted and mask is not None:
        layer._set_mask(stem, None)


def _warn_once(call: Any, key: str) -> None:
    """Warn for the first layer of each ``load_state_dict`` call, known by its list of missing keys."""
    if getattr(_last, "call", None) is not call:
        _last.call = call
        warnings.warn(
            f"load_state_dict: '{key}' comes from a deterministic checkpoint; the means are replaced and the sigmas "
            "kept. Fit or train the posterior again before you trust its uncertainty.",
            UserWarning,
            stacklevel=2,
        )
