"""State dicts of a module with posteriors: what is saved, and how a state is loaded."""

from __future__ import annotations

from typing import Any

from ..torch_internals import buffers_of, load_hooks_of, parameters_of
from .loading import adapt_state_dict
from .pretrained import adapt_to_save_pretrained
from .storage import PosteriorStorage

__all__ = ["PosteriorStateDict"]


class PosteriorStateDict(PosteriorStorage):
    """The part of a module with posteriors that saves and loads them."""

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        # A class that saves its parameters by name, in a way of its own, knows nothing of posteriors.
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
        # The user's hooks know the original names: they run first, and only once.
        hooks = load_hooks_of(self)
        users = dict(hooks)
        for hook in users.values():
            hook(state_dict, prefix, *args)
        hooks.clear()
        try:
            super()._load_from_state_dict(adapt_state_dict(self, state_dict, prefix, args), prefix, *args)
        finally:
            hooks.update(users)
