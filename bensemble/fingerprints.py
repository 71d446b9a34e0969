"""Which network, or which posterior, something was computed for, as texts that are equal where the weights are.

A digest is computed again only after a write into a tensor of the model.
"""

from __future__ import annotations

import hashlib
import weakref
from collections.abc import Callable, Iterable, Iterator
from typing import TypeAlias

import torch
from torch import Tensor, nn

from .layers.weights import PosteriorModule
from .models.sharding import holds_shards, whole
from .models.state import unwrapped
from .torch_internals import buffers_of, parameters_of, version

__all__ = ["network_fingerprint", "posterior_fingerprint"]

#: What a digest was computed from, one entry for each tensor, and the digest.
_State: TypeAlias = list[tuple[str, "weakref.ref[Tensor]", int]]

_networks: weakref.WeakKeyDictionary[nn.Module, tuple[_State, str]] = weakref.WeakKeyDictionary()
_posteriors: weakref.WeakKeyDictionary[nn.Module, tuple[_State, str]] = weakref.WeakKeyDictionary()

#: Bytes behind one sum in the digest of a posterior.
_BLOCK = 4096


@torch.no_grad()
def network_fingerprint(model: nn.Module) -> str:
    """SHA-256 of all means and buffers with their names, as hexadecimal text.

    A plain model and its bayesified copy count as one, because a posterior mean has the name of the weight that it was;
    rho, masks and priors do not count, but the zeros of a mask do.

    Args:
        model: Any model outside of its wrappers. If it is sharded, all processes must call this.
    """
    entries = list(_entries(model))

    def digest() -> str:
        found = hashlib.sha256()
        for name, tensor, mask in sorted(entries, key=lambda entry: entry[0]):
            value = whole(tensor)
            value = value if mask is None else value * mask.to(value.dtype)
            found.update(f"\n{name} {value.dtype} {tuple(value.shape)}\n".encode())
            if value.numel() and not value.is_meta:
                one_zero = value.detach().cpu() + 0 if value.is_floating_point() else value.detach().cpu()  # no -0
                found.update(one_zero.contiguous().reshape(-1).view(torch.uint8).numpy().data)
        return found.hexdigest()

    read = ((name, tensor) for name, *both in entries for tensor in both if tensor is not None)
    return _remembered(_networks, model, read, digest)


@torch.no_grad()
def posterior_fingerprint(models: Iterable[nn.Module]) -> str | None:
    """A digest of all that predictions depend on: means, rho, masks, bases and buffers; None for a sharded model.

    Every tensor is read once, at the speed of memory: the digest is that of exact sums of its bits, block by block.

    Args:
        models: The members of an ensemble, or one model; wrappers do not count.
    """
    found = []
    for model in map(unwrapped, models):
        if holds_shards(model):
            return None
        named = [(name, tensor) for name, tensor in model.state_dict(keep_vars=True).items() if _predicts(name, tensor)]
        found.append(_remembered(_posteriors, model, named, lambda named=named: _digest_of_sums(named)))  # type: ignore[misc]
    return found[0] if len(found) == 1 else hashlib.sha256(" ".join(found).encode()).hexdigest()


def _remembered(
    known: weakref.WeakKeyDictionary[nn.Module, tuple[_State, str]],
    model: nn.Module,
    tensors: Iterable[tuple[str, Tensor]],
    digest: Callable[[], str],
) -> str:
    """The digest that is known for tensors that nobody has written to, or a new one."""
    state: _State = [(name, weakref.ref(tensor), version(tensor)) for name, tensor in tensors]
    before = known.get(model)
    if before is not None and before[0] == state and not holds_shards(model):
        return before[1]
    known[model] = (state, digest())
    return known[model][1]


def _entries(model: nn.Module) -> Iterator[tuple[str, Tensor, Tensor | None]]:
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


def _predicts(name: str, tensor: object) -> bool:
    """Whether an entry of a state dict is a tensor that predictions may depend on."""
    return isinstance(tensor, Tensor) and not name.endswith(("_prior_sigma", "_prior_mean"))


def _digest_of_sums(named: Iterable[tuple[str, Tensor]]) -> str:
    found = hashlib.sha256()
    for name, tensor in named:
        found.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        if tensor.is_meta:  # without values; a forward that reads them gives none either
            continue
        data = tensor.detach().contiguous().reshape(-1).view(torch.uint8)
        even = len(data) - len(data) % _BLOCK
        if tensor.storage_offset() * tensor.element_size() % 8:
            data = data.clone()
        found.update(data[:even].view(torch.int64).reshape(-1, _BLOCK // 8).sum(1).cpu().numpy().data)
        found.update(data[even:].cpu().numpy().data)
    return found.hexdigest()
