"""The base class of Bayesian layers, with its published interface: KL, signal-to-noise masks, pruning.

A subclass declares Parameters in pairs ``<stem>_mu``, ``<stem>_rho``, and gets KL, signal-to-noise ratios and masks. A
``weight_property`` reads the weight: a draw, the mean or the held sample, by the state of the layer; zero where it is
pruned::

    class BayesianScale(BaseBayesianLayer):
        scale = weight_property("scale")  # from scale_mu and scale_rho

        def __init__(self, features):
            super().__init__(prior_sigma=1.0)
            self.scale_mu = nn.Parameter(torch.ones(features))
            self.scale_rho = nn.Parameter(torch.full((features,), -5.0))

        def forward(self, x):
            return x * self.scale

A forward of a built-in layer draws noise by local reparameterization in ``train()``, uses the held sample inside
``bensemble.sampling``, and uses the posterior mean in ``eval()``, with results equal to the deterministic layer's bit
for bit.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor, nn

from ..checks import check_number
from ..errors import InvalidValueError
from ..models.sharding import PartialSums
from ..posterior import Posterior
from ..priors import Normal
from ..torch_internals import parameters_of
from .weights import PosteriorModule

__all__ = ["BaseBayesianLayer"]


class BaseBayesianLayer(PosteriorModule):
    """Base of every Bayesian layer.

    Args:
        prior_sigma: Standard deviation of the zero-mean normal prior of every pair without another prior.

    Raises:
        InvalidValueError: ``prior_sigma`` is not positive and finite.

    Example:
        >>> layers = [layer for layer in bnn.modules() if isinstance(layer, bensemble.BaseBayesianLayer)]
    """

    _twin_attributes = ("prior_sigma", "init_sigma", "estimator", "variance_dtype", "is_last", "weight_init")

    def __init__(self, prior_sigma: float = 1.0) -> None:
        super().__init__()
        self._answer_original_names()
        self.prior_sigma = prior_sigma

    @property
    def prior_sigma(self) -> float | Tensor | None:
        """Standard deviation of the normal prior of the first weight; None if its prior is not normal.

        Setting it gives every weight of the layer the prior N(0, prior_sigma^2).
        """
        learnt = parameters_of(self).get("prior_sigma")
        if learnt is not None:
            return learnt
        first = next(self.posteriors(), None)
        prior = self._prior_of(first.stem) if first else Normal(self.__dict__["prior_sigma"])
        return prior.sigma if isinstance(prior, Normal) else None

    @prior_sigma.setter
    def prior_sigma(self, value: float) -> None:
        self.__dict__["prior_sigma"] = check_number(type(self).__name__, "prior_sigma", value, above=0)
        for posterior in self.posteriors():
            self._set_prior(posterior.stem, Normal(value))

    def register_parameter(self, name: str, param: nn.Parameter | None) -> None:
        """As in ``nn.Module``; a subclass may register a learnable ``prior_sigma``."""
        if name == "prior_sigma":
            parameters_of(self)[name] = param
        else:
            super().register_parameter(name, param)

    def posteriors(self) -> Iterator[Posterior]:
        """One handle for each pair of Parameters ``<stem>_mu``, ``<stem>_rho`` of this layer."""
        return self._posteriors()

    def kl_divergence(self) -> Tensor:
        """KL(q || p) in nats, summed over all posteriors of the layer; a scalar, 0 without posteriors."""
        sums = PartialSums(next((p.device for p in self.parameters()), None))
        for posterior in self.posteriors():
            posterior.add_kl(sums)
        return sums.total()

    def get_pruning_masks(self, threshold: float = 0.83) -> dict[str, Tensor]:
        """Masks that keep a weight if its signal-to-noise ratio ``|mu| / sigma`` exceeds the threshold.

        The rule comes from Graves (2011, "Practical Variational Inference for Neural Networks", section 6). His
        threshold 0.83 is sqrt(ln 2), where the posterior density at zero is 1/sqrt(2) of its maximum.

        Args:
            threshold: A plain ratio, at least 0.

        Returns:
            ``{"w_mu": mask, "b_mu": mask}``: 1.0 keep, 0.0 prune, in the shape of the mean. Pruned weights stay pruned.
        """
        if isinstance(threshold, bool) or not isinstance(threshold, (int, float)) or not threshold >= 0:
            raise InvalidValueError(f"get_pruning_masks: threshold must be 0 or above, got {threshold!r}.")
        with torch.no_grad():
            return {f"{p.stem}_mu": (p.snr() > threshold).float() for p in self.posteriors()}

    def apply_pruning(self, threshold: float = 0.83) -> float:
        """Prune in place by :meth:`get_pruning_masks`; the masks stay in force during training.

        Weights that are not prunable are left out. If layers share a weight, use :func:`bensemble.prune` on the whole
        model, which masks it in each of them.

        Returns:
            Sparsity of the layer: the share of its weights and biases that are pruned, between 0 and 1.
        """
        prunable = {f"{p.stem}_mu" for p in self.posteriors() if p.prunable}
        masks = {key: mask for key, mask in self.get_pruning_masks(threshold).items() if key in prunable}
        for key, mask in masks.items():
            self._set_mask(key.removesuffix("_mu"), mask)
        kept = sum(float(mask.sum()) for mask in masks.values())
        total = sum(mask.numel() for mask in masks.values())
        return 1.0 - kept / total if total else 0.0
