"""Modules whose weights have posteriors: where the tensors live, and how a weight is read, assigned, moved, loaded.

A posterior is a pair of Parameters ``<stem>_mu`` and ``<stem>_rho`` of one module, with an optional buffer
``<stem>_mask`` and the tensors of its prior in buffers ``<stem>_prior_<field>``. A module that stands for a
deterministic one also maps that module's parameter names to stems and reads them through :func:`weight_property`.

========================  =======================================================================
state                     reading ``.weight``
========================  =======================================================================
``train()``               one reparameterized draw, read-only; gradients reach mu and rho
``eval()``                the posterior mean: the Parameter itself, or read-only where pruned
inside ``sampling``       the held sample
========================  =======================================================================

Everything here has a private name, because this class is mixed into modules of any type, whose names come first.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..errors import ConversionError, InvalidTypeError, InvalidValueError
from ..gaussian import precise
from ..models.sharding import sharded_like, whole
from ..noise.draws import WeightDraw, random_draw, read_only
from ..noise.stack import active_frame, forward_of_first_run
from ..posterior import Posterior, check_mask, parameter_of
from ..priors import Normal, PriorSlot
from .loading import adapt_state_dict
from .parameters import PosteriorParameters, called_from, order_message
from .pretrained import adapt_to_save_pretrained
from .sharing import posterior_of_mean, remember, share, stop_sharing

__all__ = ["PosteriorWeights", "weight_property"]


class PosteriorWeights(nn.Module):
    """A module that holds posteriors; see the text above."""

    #: Original parameter name -> stem of its posterior. Empty for a layer that is no twin of a deterministic one.
    _stems: ClassVar[dict[str, str]] = {}
    #: The type this module had, or would have, without posteriors.
    deterministic_class: ClassVar[type[nn.Module]]

    # -- posteriors

    def _posteriors(self) -> Iterator[Posterior]:
        """One handle for each pair of Parameters ``<stem>_mu``, ``<stem>_rho`` of this layer."""
        names = {stem: name for name, stem in self._stems.items()}
        for key in list(self._parameters):
            stem = key.removesuffix("_mu")
            if stem != key and self._parameters[key] is not None and getattr(self, f"{stem}_rho", None) is not None:
                yield Posterior(self, names.get(stem, stem), stem)

    def _answer_original_names(self) -> None:
        """Let ``_parameters`` find the posterior means under the names of the parameters they stand for."""
        means = {name: f"{stem}_mu" for name, stem in self._stems.items()}
        self.__dict__["_parameters"] = PosteriorParameters(self._parameters, means)
        remember(self)

    def __setstate__(self, state: Any) -> None:
        super().__setstate__(state)
        remember(self)

    def _posterior(self, name: str) -> Posterior | None:
        """The posterior of a parameter by its original name, or None when that parameter has none."""
        stem = self._stems.get(name, name)
        return None if parameter_of(self, f"{stem}_mu") is None else Posterior(self, name, stem)

    def _prior_of(self, stem: str, cut: Callable[[Tensor], Tensor] | None = None) -> Any:
        """The prior of one posterior; ``cut`` picks entries out of the fields that are per weight."""
        slot: PriorSlot | None = self.__dict__.get("_prior_slots", {}).get(stem)
        if slot is None:
            return Normal(self.__dict__.get("prior_sigma", 1.0))
        tensors = {field: getattr(self, f"{stem}_prior_{field}") for field in slot.fields}
        if cut is not None:
            shape = getattr(self, f"{stem}_mu").shape
            tensors = {field: cut(t) if t.shape == shape else t for field, t in tensors.items()}
        return slot.put_together(tensors)

    def _set_prior(self, stem: str, prior: Any) -> None:
        """Give one posterior a prior of its own; tensors of the prior become buffers ``<stem>_prior_<field>``."""
        slot, tensors = PriorSlot.take_apart(prior)
        old: PriorSlot | None = self.__dict__.get("_prior_slots", {}).get(stem)
        for field in old.fields if old else ():
            del self._buffers[f"{stem}_prior_{field}"]
        for field, tensor in tensors.items():
            nn.Module.register_buffer(self, f"{stem}_prior_{field}", tensor)  # past an override of the user's own
        self.__dict__["_prior_slots"] = {**self.__dict__.get("_prior_slots", {}), stem: slot}

    def _is_prunable(self, stem: str) -> bool:
        """Whether a zero in the mean is a zero in the weight that reaches the operation."""
        return stem not in self.__dict__.get("_not_prunable", ())

    def _forbid_pruning(self, stem: str) -> None:
        """Say that a zero in the mean is no zero in the weight that reaches the operation."""
        if self._is_prunable(stem):
            self.__dict__["_not_prunable"] = (*self.__dict__.get("_not_prunable", ()), stem)

    def _set_mask(self, stem: str, mask: Tensor | None) -> None:
        """Set or lift the pruning mask of one posterior; see :meth:`Posterior.set_mask`."""
        mu = getattr(self, f"{stem}_mu", None)
        if mu is None:
            known = ", ".join(repr(p.stem) for p in self._posteriors())
            raise InvalidValueError(f"set_mask: {type(self).__name__} has no posterior {stem!r}, only {known}.")
        if mask is None:
            self._buffers.pop(f"{stem}_mask", None)
            return
        mask = whole(mask)
        check_mask("set_mask", f"{stem}_mu", mask, mu.shape)
        nn.Module.register_buffer(self, f"{stem}_mask", mask.detach().to(mu.device, precise(mu).dtype, copy=True))
        with torch.no_grad():
            mu.mul_(sharded_like(mask.to(mu.device, mu.dtype), like=mu))

    # -- reading and assigning weights under their original names

    def _read_weight(self, name: str) -> Tensor | None:
        """The weight under its original name, by the state of the layer; see the table of this module."""
        stem = self._stems[name]
        mu = parameter_of(self, f"{stem}_mu")
        if mu is None:
            return self._parameters.get(name)
        if not isinstance(mu, Tensor):
            return _traced(mu, f"{stem}_mu", name)
        frame = active_frame(self)
        at_mean = not self.training if frame is None else frame.is_mean
        if at_mean and f"{stem}_mask" not in self._buffers:
            return mu
        posterior = Posterior(self, name, stem)
        if at_mean:
            return read_only(posterior, posterior.mean)
        frame = frame or forward_of_first_run(self)
        return random_draw(posterior, posterior.draw_noise) if frame is None else frame.read(posterior)

    def __setattr__(self, name: str, value: Any) -> None:
        # nn.Module registers Parameters before it looks at properties, so the public names are answered here.
        if name not in self._stems:
            super().__setattr__(name, value)
            return
        if called_from("torch.nn.utils.fusion"):
            # Looks like any other assignment of a Parameter, but sigma would have to be scaled along.
            raise ConversionError(order_message("fuse", name))
        if isinstance(value, Tensor) and not isinstance(value, (nn.Parameter, WeightDraw)):
            raise InvalidTypeError(
                f"assign: '{name}' of {type(self).__name__} must be an nn.Parameter, got a plain tensor; "
                f"copy it into `{self._stems[name]}_mu` under torch.no_grad()."
            )
        # A Parameter of the mean's shape becomes the mean, as tie_weights wants it; a draw stands for its mean.
        mean = value.source.mu if isinstance(value, WeightDraw) else value
        source = posterior_of_mean(mean) if isinstance(mean, nn.Parameter) else None
        self._parameters[name] = mean  # type: ignore[assignment]
        posterior = self._posterior(name)
        if posterior is None or not isinstance(mean, nn.Parameter):
            return
        if source is None:
            stop_sharing(posterior)
        elif source.rho is not posterior.rho:
            share(posterior, source)

    def __delattr__(self, name: str) -> None:
        if name in self._stems or name in self._posterior_keys():
            raise ConversionError(order_message("delete", name))
        super().__delattr__(name)

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """As ``nn.Module.register_parameter``, but a posterior weight keeps its name."""
        taken = [key for key, value in self.__dict__.get("_parameters", {}).items() if value is param is not None]
        own = self._posterior_keys()
        renamed = name not in own and any(key in own for key in taken)
        if name in self._stems or isinstance(param, WeightDraw) or renamed:
            raise ConversionError(order_message("register_parameter", name))
        super().register_parameter(name, param)

    def get_parameter(self, target: str) -> Any:
        """As ``nn.Module.get_parameter``; a posterior weight is what its layer hands out, not a Parameter."""
        path, _, name = target.rpartition(".")
        module = self.get_submodule(path)
        if isinstance(module, PosteriorWeights) and name in module._stems:
            return module._read_weight(name)
        return super().get_parameter(target)

    def _posterior_keys(self) -> set[str]:
        """The names of the Parameters that make up the posteriors."""
        return {f"{p.stem}_{part}" for p in self._posteriors() for part in ("mu", "rho")}

    # -- dtype, loading

    def _apply(self, fn: Callable[[Tensor], Tensor], recurse: bool = True) -> PosteriorWeights:
        """Move or cast; rho, masks and prior scales stay in float32 when the weights become half precision.

        A bfloat16 rho does not move under Adam: its steps are smaller than its resolution.
        """
        owners: tuple[dict[str, Any], ...] = (self._parameters, self._buffers)
        kept = {
            (i, key): tensor.data
            for i, owner in enumerate(owners)
            for key, tensor in owner.items()
            if tensor is not None and tensor.dtype in (torch.float32, torch.float64) and self._stays_precise(key)
        }
        super()._apply(fn, recurse)
        for (i, key), before in kept.items():
            after = owners[i][key]
            assert after is not None
            if after.dtype in (torch.float16, torch.bfloat16):
                after.data = before.to(after.device, torch.float32)
        return self

    def _belongs_to_posterior(self, key: str) -> bool:
        return key in self._posterior_keys() or self._stays_precise(key)

    def _stays_precise(self, key: str) -> bool:
        # Not every name that starts with a stem: the user's own `weight_scale` is none of ours.
        return any(
            key in (f"{p.stem}_rho", f"{p.stem}_mask") or key.startswith(f"{p.stem}_prior_") for p in self._posteriors()
        )

    def _save_to_state_dict(self, destination: Any, prefix: str, keep_vars: bool) -> None:
        super()._save_to_state_dict(destination, prefix, keep_vars)
        # A class that saves its parameters by name, in a way of its own, knows nothing of posteriors.
        for name in self._stems:
            if self._posterior(name) is not None and prefix + name in destination:
                del destination[prefix + name]
        own = {**self._parameters, **self._buffers}
        for key, tensor in own.items():
            if tensor is not None and prefix + key not in destination and self._belongs_to_posterior(key):
                destination[prefix + key] = tensor if keep_vars else tensor.detach()
        mine = {prefix + key for key in own if prefix + key in destination and self._belongs_to_posterior(key)}
        adapt_to_save_pretrained(destination, mine)

    def _load_from_state_dict(self, state_dict: Any, prefix: str, *args: Any) -> None:
        # The user's hooks know the original names: they run first, and only once.
        hooks = dict(self._load_state_dict_pre_hooks)
        for hook in hooks.values():
            hook(state_dict, prefix, *args)
        self._load_state_dict_pre_hooks.clear()
        try:
            super()._load_from_state_dict(adapt_state_dict(self, state_dict, prefix, args), prefix, *args)
        finally:
            self._load_state_dict_pre_hooks.update(hooks)


class _WeightProperty(property):
    """A property that its class also lists among the names of its posteriors."""

    def __init__(self, name: str, stem: str) -> None:
        super().__init__(lambda layer: layer._read_weight(name), doc=f"The {name}: mean, draw, or held sample.")
        self.stem = stem

    def __set_name__(self, owner: type[PosteriorWeights], name: str) -> None:
        if name not in owner._stems:
            owner._stems = {**owner._stems, name: self.stem}


def weight_property(name: str, stem: str | None = None) -> property:
    """A property that reads one posterior weight by the state of the layer: mean, draw, or held sample.

    Args:
        name: The name of the attribute.
        stem: Its tensors are ``<stem>_mu`` and ``<stem>_rho``; default is the name.
    """
    return _WeightProperty(name, name if stem is None else stem)


def _traced(mean: Any, key: str, name: str) -> Any:
    """What torch.fx gets to record: a read under the original name, so that its graph asks the layer in every run."""
    path = str(mean.node.target).removesuffix(key) + name
    return mean.tracer.create_proxy("get_attr", path, (), {})
