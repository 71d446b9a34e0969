"""Which network a novelty belongs to: a digest of its means and buffers.

A plain model and its bayesified copy count as one, because a posterior mean has the name of the weight that it was;
rho, masks and priors do not count, but the zeros of a mask do.
"""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ..layers.weights import PosteriorModule
from ..models.sharding import holds_shards, whole
from ..torch_internals import buffers_of, parameters_of, version

__all__ = ["fingerprint"]

#: What a digest was computed from, one entry for each tensor, and the digest.
_State = list[tuple[str, "weakref.ref[Tensor]", int]]

_known: weakref.WeakKeyDictionary[nn.Module, tuple[_State, str]] = weakref.WeakKeyDictionary()


@torch.no_grad()
def fingerprint(model: nn.Module) -> str:
    """SHA-256 of all means and buffers with their names, as hexadecimal text; computed again after a write.

    Args:
        model: Any model outside of its wrappers. If it is sharded, all processes must call this.
    """
    tensors = list(_tensors(model))
    state: _State = [
        (name, weakref.ref(tensor), version(tensor)) for name, *both in tensors for tensor in both if tensor is not None
    ]
    known = _known.get(model)
    if known is not None and known[0] == state and not holds_shards(model):
        return known[1]
    digest = hashlib.sha256()
    for name, tensor, mask in sorted(tensors, key=lambda entry: entry[0]):
        value = whole(tensor)
        value = value if mask is None else value * mask.to(value.dtype)
        digest.update(f"\n{name} {value.dtype} {tuple(value.shape)}\n".encode())
        if value.numel():
            one_zero = value.detach().cpu() + 0 if value.is_floating_point() else value.detach().cpu()  # -0 becomes 0
            digest.update(one_zero.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    _known[model] = (state, digest.hexdigest())
    return digest.hexdigest()


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor, Tensor | None]]:
    """Every mean and buffer that a state dict has, under each of its original names, with the mask of the mean."""
    saved = model.state_dict(keep_vars=True)
    for path, module in model.named_modules(remove_duplicate=False):
        own = {**parameters_of(module), **buffers_of(module)}
        prefix = f"{path}.".replace("_orig_mod.", "") if path else ""
        if isinstance(module, PosteriorModule):
            for posterior in module._posteriors():
                yield prefix + posterior.name, posterior.mu, posterior.mask
            own = {key: tensor for key, tensor in own.items() if not module._belongs_to_posterior(key)}
        for key, tensor in own.items():
            if tensor is not None and (f"{path}.{key}" if path else key) in saved:
                yield prefix + key, tensor, None
