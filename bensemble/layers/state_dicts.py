"""State dicts of a module with posteriors: what is saved, and which state dicts can be loaded.

A module loads its own state dicts, those of the deterministic module, and published ones. A deterministic checkpoint
replaces the means; sigmas, masks and priors do not change. A published checkpoint has only ``*_mu`` and ``*_rho``; its
pruned weights have a rho below ``RHO_MIN``, and these become a mask.
"""

from __future__ import annotations

import threading
import warnings
from typing import Any

import torch
from torch import Tensor, nn

from ..gaussian import RHO_MIN, precise
from ..models.sharding import sharded_like, whole
from ..torch_internals import buffers_of, load_hooks_of, parameters_of
from .pretrained import adapt_to_save_pretrained
from .storage import PosteriorStorage

__all__ = ["PosteriorStateDict"]

_last = threading.local()


class PosteriorStateDict(PosteriorStorage):
    """Saving and loading: the part of a module with posteriors that reads and writes state dicts."""

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        # A class with its own code for saving writes its parameters under the original names.
        for name in self._stems:
            if self._posterior(name) is not None and prefix + name in destination:
                del destination[prefix + name]
        own = {**parameters_of(self), **buffers_of(self)}
        for key, tensor in own.items():
            if tensor is not None and prefix + key not in destination and self._belongs_to_posterior(key):
                destination[prefix + key] = tensor if keep_vars else tensor.detach()
        mine = {prefix + key for key in own if prefix + key in destination and self._belongs_to_posterior(key)}
        adapt_to_save_pretrained(destination, mine)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        # A user's hooks know the original names, so they run before the names are adapted, and only once.
        hooks = load_hooks_of(self)
        users = dict(hooks)
        for hook in users.values():
            hook(state_dict, prefix, *args)
        hooks.clear()
        try:
            super()._load_from_state_dict(_adapted(self, state_dict, prefix, args), prefix, *args)
        finally:
            hooks.update(users)


def _adapted(layer: PosteriorStorage, state_dict: Any, prefix: str, args: tuple[Any, ...]) -> dict[str, Any]:
    """The part of ``state_dict`` below ``prefix``, with the names that the layer has now, as a new dictionary.

    Args:
        layer: The layer that loads; it gets or loses mask buffers to match the state dict.
        state_dict: The user's state dict, which is not changed.
        prefix: Path of the layer, with its dot.
        args: The further arguments of ``nn.Module._load_from_state_dict``.
    """
    own = {key: value for key, value in state_dict.items() if key.startswith(prefix)}
    for posterior in layer._posteriors():
        mu_key, rho_key, mask_key = (f"{prefix}{posterior.stem}_{part}" for part in ("mu", "rho", "mask"))
        name_key = prefix + posterior.name
        if mu_key not in own and name_key in own:
            own[mu_key] = own.pop(name_key)
            if not posterior.rho.is_meta:  # a meta tensor has no values to keep: the key is then missing
                own.setdefault(rho_key, posterior.rho)
            if posterior.mask is not None:
                own.setdefault(mask_key, posterior.mask)
            for key in _basis_keys(layer, posterior.stem):
                own.setdefault(prefix + key, buffers_of(layer)[key])
            _warn_once(args[2], name_key)
        if isinstance(own.get(rho_key), Tensor):
            _pruned_rho_to_mask(own, mu_key, rho_key, mask_key)
        if mu_key in own:
            _match_mask(layer, posterior.stem, mask_key in own)
            _match_basis(layer, posterior.stem, prefix, own)
        for field, value in layer.named_buffers(recurse=False):
            if field.startswith(f"{posterior.stem}_prior_"):
                own.setdefault(prefix + field, value)
    return own


def _pruned_rho_to_mask(own: dict[str, Any], mu_key: str, rho_key: str, mask_key: str) -> None:
    """Turn entries of rho below ``RHO_MIN`` into a mask, and replace them by the mean of the other entries."""
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


def _match_mask(layer: Any, stem: str, wanted: bool) -> None:
    """Give the layer a mask buffer to load into, or remove its mask if the checkpoint has none."""
    mask = getattr(layer, f"{stem}_mask", None)
    if wanted and mask is None:
        rho = precise(getattr(layer, f"{stem}_rho").detach())
        ones = torch.ones(rho.shape, device=rho.device, dtype=rho.dtype)  # buffers are not sharded
        nn.Module.register_buffer(layer, f"{stem}_mask", ones)
    elif not wanted and mask is not None:
        layer._set_mask(stem, None)


def _basis_keys(layer: PosteriorStorage, stem: str) -> list[str]:
    """The buffers of the basis that a posterior has now."""
    return [key for key in (f"{stem}_basis_outer", f"{stem}_basis_inner") if key in buffers_of(layer)]


def _match_basis(layer: PosteriorStorage, stem: str, prefix: str, own: dict[str, Any]) -> None:
    """Give the layer buffers to load a basis into, or remove its basis if the checkpoint has none."""
    for key in (f"{stem}_basis_outer", f"{stem}_basis_inner"):
        loaded, rho = own.get(prefix + key), parameters_of(layer)[f"{stem}_rho"]
        if not isinstance(loaded, Tensor):
            buffers_of(layer).pop(key, None)
        elif key not in buffers_of(layer) or buffers_of(layer)[key].shape != loaded.shape:
            empty = torch.empty(loaded.shape, device=rho.device, dtype=rho.dtype)
            nn.Module.register_buffer(layer, key, empty)


def _warn_once(call: Any, key: str) -> None:
    """Warn once in each call of ``load_state_dict``, which is recognised by its list of missing keys."""
    if getattr(_last, "call", None) is not call:
        _last.call = call
        warnings.warn(
            f"load_state_dict: '{key}' comes from a deterministic checkpoint; the means are replaced and the sigmas "
            "kept. Fit or train the posterior again before you trust its uncertainty.",
            UserWarning,
            stacklevel=2,
        )
