"""How a module stores posteriors: Parameters and buffers with names made from a stem.

A posterior is a pair of Parameters ``<stem>_mu`` and ``<stem>_rho`` of one module. It may have a mask, the buffer
``<stem>_mask``, a basis other than the plain one, the buffers ``<stem>_basis_outer`` and ``<stem>_basis_inner``, and
tensors of its prior, the buffers ``<stem>_prior_<field>``. If the module is the twin of a
deterministic one, ``_stems`` maps the original parameter names to stems.

All methods have private names, because this class is mixed into modules of any type and must not hide their names.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..basis import Basis
from ..errors import InvalidValueError, refuse
from ..gaussian import precise
from ..models.sharding import sharded_like, whole
from ..posterior import Posterior, mask_problem
from ..priors import Normal, PriorSlot
from ..torch_internals import buffers_of, parameter_of, parameters_of, replace_parameters
from .parameters import PosteriorParameters
from .sharing import remember

__all__ = ["PosteriorStorage", "is_posterior_buffer"]


class PosteriorStorage(nn.Module):
    """A module that stores posteriors."""

    #: Original parameter name -> stem of its posterior. Empty for a layer that is not a twin.
    _stems: ClassVar[dict[str, str]] = {}
    #: The type of this module without posteriors.
    deterministic_class: ClassVar[type[nn.Module]]
    #: Instance attributes that are deleted when the module becomes deterministic.
    _twin_attributes: ClassVar[tuple[str, ...]] = ()

    def _posteriors(self) -> Iterator[Posterior]:
        """One handle for each pair of Parameters ``<stem>_mu``, ``<stem>_rho`` of this layer."""
        names = {stem: name for name, stem in self._stems.items()}
        for key in list(parameters_of(self)):
            stem = key.removesuffix("_mu")
            if stem != key and parameters_of(self)[key] is not None and getattr(self, f"{stem}_rho", None) is not None:
                yield Posterior(self, names.get(stem, stem), stem)

    def _answer_original_names(self) -> None:
        """Let torch find the posterior means under the original parameter names."""
        means = {name: f"{stem}_mu" for name, stem in self._stems.items()}
        replace_parameters(self, PosteriorParameters(parameters_of(self), means))
        remember(self)

    def __setstate__(self, state: Any) -> None:
        super().__setstate__(state)
        remember(self)

    def _posterior(self, name: str) -> Posterior | None:
        """The posterior of a parameter by its original name; None if it has none."""
        stem = self._stems.get(name, name)
        return None if parameter_of(self, f"{stem}_mu") is None else Posterior(self, name, stem)

    def _prior_of(self, stem: str, cut: Callable[[Tensor], Tensor] | None = None) -> Any:
        """The prior of one posterior; ``cut`` is applied to its fields that have one entry per weight."""
        slot: PriorSlot | None = self.__dict__.get("_prior_slots", {}).get(stem)
        if slot is None:
            return Normal(self.__dict__.get("prior_sigma", 1.0))
        tensors = {field: buffers_of(self)[f"{stem}_prior_{field}"] for field in slot.fields}
        if cut is not None:
            shape = getattr(self, f"{stem}_mu").shape
            tensors = {field: cut(t) if t.shape == shape else t for field, t in tensors.items()}
        return slot.put_together(tensors)

    def _set_prior(self, stem: str, prior: Any) -> None:
        """Set the prior of one posterior; its tensors become buffers ``<stem>_prior_<field>``."""
        slot, tensors = PriorSlot.take_apart(prior)
        old: PriorSlot | None = self.__dict__.get("_prior_slots", {}).get(stem)
        for field in old.fields if old else ():
            del buffers_of(self)[f"{stem}_prior_{field}"]
        for field, tensor in tensors.items():
            nn.Module.register_buffer(self, f"{stem}_prior_{field}", tensor)  # not a user's override
        self.__dict__["_prior_slots"] = {**self.__dict__.get("_prior_slots", {}), stem: slot}

    def _is_prunable(self, stem: str) -> bool:
        """Whether a zero in the mean is a zero in the weight that the layer uses."""
        return stem not in self.__dict__.get("_not_prunable", ())

    def _forbid_pruning(self, stem: str) -> None:
        """Mark a posterior as not prunable: a zero in its mean is not a zero in the weight that the layer uses."""
        if self._is_prunable(stem):
            self.__dict__["_not_prunable"] = (*self.__dict__.get("_not_prunable", ()), stem)

    def _set_mask(self, stem: str, mask: Tensor | None) -> None:
        """Set or remove the pruning mask of one posterior; see :meth:`Posterior.set_mask`."""
        mu = getattr(self, f"{stem}_mu", None)
        if mu is None:
            known = ", ".join(repr(p.stem) for p in self._posteriors())
            raise InvalidValueError(f"set_mask: {type(self).__name__} has no posterior {stem!r}, only {known}.")
        if mask is None:
            buffers_of(self).pop(f"{stem}_mask", None)
            return
        mask = whole(mask)
        problem = mask_problem(f"{stem}_mu", mask, mu.shape)
        refuse("set_mask", [problem] if problem else [], InvalidValueError)
        nn.Module.register_buffer(self, f"{stem}_mask", mask.detach().to(mu.device, precise(mu).dtype, copy=True))
        with torch.no_grad():
            mu.mul_(sharded_like(mask.to(mu.device, mu.dtype), like=mu))

    def _set_basis(self, stem: str, basis: Basis | None) -> None:
        """Set or remove the basis of one posterior; see :meth:`Posterior.set_basis`."""
        rho = getattr(self, f"{stem}_rho")
        for part in ("outer", "inner"):
            buffers_of(self).pop(f"{stem}_basis_{part}", None)
            matrix = None if basis is None else getattr(basis, part)
            if matrix is not None:
                copy = matrix.detach().to(rho.device, rho.dtype, copy=True).contiguous()
                nn.Module.register_buffer(self, f"{stem}_basis_{part}", copy)

    def _posterior_keys(self) -> set[str]:
        """The names of all ``<stem>_mu`` and ``<stem>_rho``."""
        return {f"{p.stem}_{part}" for p in self._posteriors() for part in ("mu", "rho")}

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PosteriorStorage:
        """Move or cast; rho, masks and priors stay in float32 if the weights become half precision.

        A bfloat16 rho does not change under Adam: the steps are smaller than its resolution.
        """
        kept = [
            (owner, key, tensor.data)
            for owner in (parameters_of(self), buffers_of(self))
            for key, tensor in owner.items()
            if tensor is not None and tensor.dtype in (torch.float32, torch.float64) and self._stays_precise(key)
        ]
        super()._apply(fn, recurse)
        for owner, key, before in kept:
            after = owner[key]
            if after.dtype in (torch.float16, torch.bfloat16):
                after.data = before.to(after.device, torch.float32)
        return self

    def _belongs_to_posterior(self, key: str) -> bool:
        """Whether a Parameter or buffer is a part of a posterior."""
        return key in self._posterior_keys() or self._stays_precise(key)

    def _stays_precise(self, key: str) -> bool:
        """Whether a Parameter or buffer is a rho, a mask, a part of a basis or of a prior."""
        return any(key == f"{p.stem}_rho" or is_posterior_buffer(p.stem, key) for p in self._posteriors())


def is_posterior_buffer(stem: str, key: str) -> bool:
    """Whether a buffer is the mask, or a part of the basis or the prior, of the posterior with this stem.

    A name such as ``weight_scale``, which also starts with a stem, may belong to the user.
    """
    return key in (f"{stem}_mask", f"{stem}_basis_outer", f"{stem}_basis_inner") or key.startswith(f"{stem}_prior_")
