"""Reading a weight under its original name. The state of the layer decides what is returned.

========================  ===========================================================================
state                     ``layer.weight``
========================  ===========================================================================
``train()``               one reparameterized draw, read-only; gradients reach mu and rho
``eval()``                the posterior mean: the Parameter itself, or a read-only copy if it is pruned
inside ``sampling``       the held sample
========================  ===========================================================================
"""

from __future__ import annotations

from typing import Any

from torch import Tensor

from ..noise.lazy_weights import random_draw, read_only
from ..noise.recomputation import refuse_part_of_forward
from ..noise.stack import active_sample
from ..posterior import Posterior
from ..torch_internals import buffers_of, parameter_of, parameters_of
from .storage import PosteriorStorage

__all__ = ["WeightReading", "weight_property"]


class WeightReading(PosteriorStorage):
    """Reading: the part of a module with posteriors that gives out weights."""

    def _read_weight(self, name: str) -> Tensor | None:
        """The weight under its original name, by the state of the layer; see the table of this module."""
        stem = self._stems[name]
        mu = parameter_of(self, f"{stem}_mu")
        if mu is None:
            return parameters_of(self).get(name)
        if not isinstance(mu, Tensor):
            return _traced(mu, f"{stem}_mu", name)
        held = active_sample(self)
        at_mean = not self.training if held is None else held.is_mean
        if at_mean and f"{stem}_mask" not in buffers_of(self):
            return mu
        posterior = Posterior(self, name, stem)
        if at_mean:
            return read_only(posterior, posterior.mean)
        if held is not None:
            return held.read(posterior)
        refuse_part_of_forward(self)
        return random_draw(posterior, posterior.draw_noise)

    def get_parameter(self, target: str) -> Any:
        """As ``nn.Module.get_parameter``; for a weight with a posterior, the same as reading the attribute."""
        path, _, name = target.rpartition(".")
        module = self.get_submodule(path)
        if isinstance(module, WeightReading) and name in module._stems:
            return module._read_weight(name)
        return super().get_parameter(target)


class _WeightProperty(property):
    """A property that also enters its name into ``_stems`` of its class."""

    def __init__(self, name: str, stem: str) -> None:
        super().__init__(lambda layer: layer._read_weight(name), doc=f"The {name}: mean, draw, or held sample.")
        self.stem = stem

    def __set_name__(self, owner: type[PosteriorStorage], name: str) -> None:
        if name not in owner._stems:
            owner._stems = {**owner._stems, name: self.stem}


def weight_property(name: str, stem: str | None = None) -> property:
    """A property that reads one weight with a posterior: mean, draw, or held sample, by the state of the layer.

    Args:
        name: Name of the attribute.
        stem: Prefix of its tensors ``<stem>_mu`` and ``<stem>_rho``; default ``name``.
    """
    return _WeightProperty(name, name if stem is None else stem)


def _traced(mean: Any, key: str, name: str) -> Any:
    """The read that torch.fx records while it traces: of the original name, so that the layer answers in each run."""
    path = str(mean.node.target).removesuffix(key) + name
    return mean.tracer.create_proxy("get_attr", path, (), {})
