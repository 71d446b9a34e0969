"""The base class of Bayesian layers, and its published contract: KL, signal-to-noise masks, pruning.

A subclass only has to declare Parameters in pairs ``<stem>_mu``, ``<stem>_rho``; KL, signal-to-noise ratios and masks
come with them. Read through a ``weight_property``, the weight is a draw, the mean or the held sample by the state of
the layer, and zero where it is pruned::

    class BayesianScale(BaseBayesianLayer):
        scale = weight_property("scale")  # from scale_mu and scale_rho

        def __init__(self, features):
            super().__init__(prior_sigma=1.0)
            self.scale_mu = nn.Parameter(torch.ones(features))
            self.scale_rho = nn.Parameter(torch.full((features,), -5.0))

        def forward(self, x):
            return x * self.scale

What a forward of the built-in layers does: in ``train()`` noise by local reparameterization, in ``eval()`` the
posterior mean, bit for bit the numbers of the deterministic layer, inside ``bensemble.sampling`` the held sample.
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
from .weights import PosteriorWeights

__all__ = ["BaseBayesianLayer"]


class BaseBayesianLayer(PosteriorWeights):
    """Base of every Bayesian layer.

    Args:
        prior_sigma: Standard deviation of the zero-mean normal prior of every pair that has no prior of its own.

    Raises:
        InvalidValueError: ``prior_sigma`` is not positive and finite.
    """

    def __init__(self, prior_sigma: float = 1.0) -> None:
        super().__init__()
        self._answer_original_names()
        self.prior_sigma = prior_sigma

    @property
    def prior_sigma(self) -> float | Tensor | None:
        """Standard deviation of the normal prior of the first weight; None where its prior is of another kind.

        Setting it gives every weight of the layer the prior N(0, prior_sigma^2).
        """
        learnt = self._parameters.get("prior_sigma")
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
        """As in ``nn.Module``; a subclass may learn its prior_sigma."""
        if name == "prior_sigma":
            self._parameters[name] = param
        else:
            super().register_parameter(name, param)

    def posteriors(self) -> Iterator[Posterior]:
        """One handle for each pair of Parameters ``<stem>_mu``, ``<stem>_rho`` of this layer."""
        return self._posteriors()

    def kl_divergence(self) -> Tensor:
        """KL(q || p) in nats, summed over every posterior of the layer; a scalar, 0 without posteriors."""
        sums = PartialSums(next((p.device for p in self.parameters()), None))
        for posterior in self.posteriors():
            posterior.add_kl(sums)
        return sums.total()

    def get_pruning_masks(self, threshold: float = 0.83) -> dict[str, Tensor]:
        """Masks that keep a weight where its signal-to-noise ratio ``|mu| / sigma`` exceeds the threshold.

        The rule is Graves' (2011, "Practical Variational Inference for Neural Networks", section 6); his 0.83 is
        sqrt(ln 2), where the posterior density at zero is 1/sqrt(2) of its peak.

        Args:
            threshold: A plain ratio, 0 or above.

        Returns:
            ``{"w_mu": mask, "b_mu": mask}``: 1.0 keep, 0.0 prune, in the shape of the mean. What is pruned stays so.
        """
        if isinstance(threshold, bool) or not isinstance(threshold, (int, float)) or not threshold >= 0:
            raise InvalidValueError(f"get_pruning_masks: threshold must be 0 or above, got {threshold!r}.")
        with torch.no_grad():
            return {f"{p.stem}_mu": (p.snr() > threshold).float() for p in self.posteriors()}

    def apply_pruning(self, threshold: float = 0.83) -> float:
        """Prune in place by :meth:`get_pruning_masks`; the masks hold while training goes on.

        Weights that are not prunable stay. Where a weight is shared by several layers, prune the whole model instead
        (:func:`bensemble.prune`), which masks it at every place.

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
