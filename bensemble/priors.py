r"""Priors over the weights, and the KL divergence of a Gaussian posterior to each.

A prior is any object with ``kl(mu, sigma) -> Tensor``, the summed KL in nats, or with ``log_prob(w) -> Tensor``, the
summed log density; from the density the KL is estimated by one reparameterized draw. The built-in priors are frozen
dataclasses. Tensors in their fields become buffers of the layer, so they are moved, saved and loaded with it.

Use ``empirical`` or ``pretrained`` for uncertainty around a trained network, ``ard`` for pruning, and ``normal`` for
networks trained from scratch. A prior centred on the trained weights keeps them from becoming zero, so it prevents
pruning. A zero-mean prior at beta = 1 destroys a large network that is trained on little data.
"""

from __future__ import annotations

import copy
import dataclasses
from dataclasses import dataclass
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor

from .checks import check_number
from .errors import InvalidTypeError, InvalidValueError, shown
from .gaussian import entropy, kl_normal, precise, root_mean_square, standard_normal_like

__all__ = [
    "ARD",
    "PRIOR_NAMES",
    "DensityPrior",
    "Normal",
    "Prior",
    "check_prior",
    "empirical",
    "kl_to",
    "make_prior",
    "pretrained",
]

#: The names of the built-in priors.
PRIOR_NAMES = ("normal", "empirical", "pretrained", "ard")


@runtime_checkable
class Prior(Protocol):
    """A prior with a closed form of the KL.

    If weights are pruned, ``mu``, ``sigma`` and the tensors of the prior hold the other weights only, as vectors.

    Example:
        >>> isinstance(bensemble.priors.Normal(0.5), bensemble.priors.Prior)
        True
    """

    def kl(self, mu: Tensor, sigma: Tensor) -> Tensor:
        """KL(N(mu, sigma^2) || prior) in nats, summed to a scalar."""
        ...


@runtime_checkable
class DensityPrior(Protocol):
    """A prior with a log density only.

    Example:
        >>> bnn = convert.bayesify(model, prior=torch.distributions.Laplace(0.0, 0.5))
    """

    def log_prob(self, w: Tensor) -> Tensor:
        """Log density of the weights in nats, summed to a scalar or one value per weight."""
        ...


@dataclass(frozen=True, eq=False)
class Normal:
    """N(mean, sigma^2), the conjugate of the Gaussian posterior.

    Attributes:
        sigma: Prior standard deviation, one number or one per weight.
        mean: Prior mean, 0 or one per weight.

    Example:
        >>> bnn = convert.bayesify(model, prior=bensemble.priors.Normal(0.5))
    """

    sigma: float | Tensor = 1.0
    mean: float | Tensor = 0.0

    def __post_init__(self) -> None:
        if not isinstance(self.sigma, Tensor):
            check_number("prior", "prior_sigma", self.sigma, above=0)
        elif not self.sigma.is_meta and not bool(((self.sigma > 0) & self.sigma.isfinite()).all()):
            raise InvalidValueError("prior: prior_sigma must be finite and above 0 for every weight.")

    @property
    def is_constant(self) -> bool:
        """Whether the prior has one standard deviation for all weights and no learnable tensors."""
        sigma, mean = self.sigma, self.mean
        if isinstance(sigma, Tensor) and (sigma.numel() != 1 or sigma.requires_grad):
            return False
        return not isinstance(mean, Tensor) or not mean.requires_grad

    def kl(self, mu: Tensor, sigma: Tensor) -> Tensor:
        """KL(q || prior) in nats, summed (closed form)."""
        width = self.sigma
        if isinstance(width, Tensor) and not width.requires_grad:
            width = width.clone()  # the forward of DDP writes buffers again, and autograd would hold this one
        return kl_normal(mu, sigma, self.mean, width)


@dataclass(frozen=True, eq=False)
class ARD:
    r"""Automatic relevance determination: a zero-mean normal with a variance per weight, set to its optimum.

    With the prior variance at :math:`\mu^2 + \sigma^2` the KL is :math:`\frac12\sum\log(1 + \mu^2/\sigma^2)`
    (Kharitonov, Molchanov & Vetrov 2018, "Variational Dropout via Empirical Bayes", equation 12). It has no scale to
    choose, and it drives the signal-to-noise ratio of unnecessary weights to zero, which pruning needs.

    Example:
        >>> bnn = convert.bayesify(model, prior=bensemble.priors.ARD())
    """

    def kl(self, mu: Tensor, sigma: Tensor) -> Tensor:
        """KL(q || prior) in nats, summed (closed form)."""
        ratio = (precise(mu) / sigma).clamp(-1e18, 1e18)  # squares stay finite in float32
        return 0.5 * torch.log1p(ratio.square()).sum()


def empirical(mu: Tensor, sigma: Tensor, scale: Tensor | None = None) -> Normal:
    """The zero-mean normal that maximises the evidence lower bound for this tensor.

    The derivative of the KL with respect to the prior variance is zero at s^2 = mean(mu^2 + sigma^2).

    Args:
        mu: Posterior means.
        sigma: Posterior standard deviations, a tensor that broadcasts against ``mu``.
        scale: Root mean square of ``mu``, if it is known.

    Example:
        >>> prior = bensemble.priors.empirical(model[5].weight, sigma=torch.tensor(0.1))
    """
    scale = root_mean_square(mu.detach()) if scale is None else scale
    return Normal(sigma=torch.hypot(scale, root_mean_square(sigma.detach())))


def pretrained(mu: Tensor, sigma: float | Tensor) -> Normal:
    """A normal centred on the trained weights (MOPED; Krishnan, Subedar & Tickoo 2020).

    Args:
        mu: The trained weights; a copy becomes the prior mean.
        sigma: Prior standard deviation.

    Example:
        >>> prior = bensemble.priors.pretrained(model[5].weight, sigma=0.1)
    """
    return Normal(sigma=sigma, mean=mu.detach().clone())


def make_prior(
    verb: str, prior: Any, prior_sigma: float | None, mu: Tensor, sigma: Tensor, scale: Tensor | None = None
) -> Any:
    """The prior for one weight tensor, by the arguments ``prior`` and ``prior_sigma`` of a public function.

    Args:
        verb: The public function, for errors.
        prior: One of ``PRIOR_NAMES``, or a prior.
        prior_sigma: Standard deviation for ``"normal"`` (None: 1) and ``"pretrained"`` (None: ``sigma``).
        mu: Posterior means.
        sigma: Posterior standard deviations, 0-dimensional or in the shape of ``mu``.
        scale: Root mean square of ``mu``, if it is known.

    Raises:
        InvalidTypeError: ``prior`` is neither a name nor a prior.
        InvalidValueError: The name is unknown, or ``prior_sigma`` is not positive or does not belong to the prior.
    """
    if prior_sigma is not None:
        check_number(verb, "prior_sigma", prior_sigma, above=0)
        if prior in ("empirical", "ard") or not isinstance(prior, str):
            raise InvalidValueError(
                f"{verb}: prior_sigma belongs to the priors 'normal' and 'pretrained', got {prior_sigma!r} with "
                f"prior={prior!r}; leave prior_sigma out."
            )
    if not isinstance(prior, str):
        return check_prior(verb, prior, mu.shape)
    if prior == "normal":
        return Normal(1.0 if prior_sigma is None else prior_sigma)
    if prior == "empirical":
        return empirical(mu, sigma, scale)
    if prior == "pretrained":
        return pretrained(mu, sigma if prior_sigma is None else prior_sigma)
    if prior == "ard":
        return ARD()
    raise InvalidValueError(f"{verb}: prior must be one of {', '.join(PRIOR_NAMES)}, or a prior, got {prior!r}.")


def kl_to(prior: Prior | DensityPrior, mu: Tensor, sigma: Tensor) -> Tensor:
    """KL of the posterior to any prior, in nats.

    For priors with a density only it is estimated by one draw and the exact entropy of the posterior,
    ``-H[q] - log p(mu + sigma * eps)``.

    Example:
        >>> bensemble.priors.kl_to(bensemble.priors.Normal(1.0), torch.zeros(3), torch.ones(3))
        tensor(0.)
    """
    if isinstance(prior, Prior):
        return prior.kl(mu, sigma)
    draw = precise(mu) + sigma * standard_normal_like(sigma)
    return -entropy(sigma) - prior.log_prob(draw).sum()


def check_prior(verb: str, prior: Any, shape: torch.Size) -> Any:
    """The prior, or an error unless it has ``kl(mu, sigma)`` or ``log_prob(w)`` and fits weights of this shape."""
    if isinstance(prior, type) or not isinstance(prior, (Prior, DensityPrior)):
        raise InvalidTypeError(
            f"{verb}: prior must be one of {', '.join(PRIOR_NAMES)}, or an object with kl(mu, sigma) or log_prob(w), "
            f"got {shown(repr(prior))}."
        )
    for name, value in (("sigma", prior.sigma), ("mean", prior.mean)) if isinstance(prior, Normal) else ():
        if isinstance(value, Tensor) and value.dim() and value.shape != shape:
            # Masks select entries of it, so it is not broadcast.
            raise InvalidValueError(
                f"{verb}: {name} of the prior must be one number or one per weight, {tuple(shape)}, got shape "
                f"{tuple(value.shape)}; expand it to the shape of the weight."
            )
    return prior


@dataclass(frozen=True)
class PriorSlot:
    """A prior without its tensors, which are stored as buffers of a layer.

    Attributes:
        prior: The prior with its tensor fields replaced by None.
        fields: Names of the tensor fields.
    """

    prior: Any
    fields: tuple[str, ...] = ()

    @classmethod
    def take_apart(cls, prior: Any) -> tuple[PriorSlot, dict[str, Tensor]]:
        """The slot of a prior, and its tensors by field name."""
        if not dataclasses.is_dataclass(prior):
            return cls(prior), {}
        values = {field.name: getattr(prior, field.name) for field in dataclasses.fields(prior)}
        tensors = {name: value.detach() for name, value in values.items() if isinstance(value, Tensor)}
        return cls(_with_fields(prior, dict.fromkeys(tensors)), tuple(tensors)), tensors

    def put_together(self, tensors: dict[str, Tensor]) -> Any:
        """The prior with its tensors."""
        return _with_fields(self.prior, tensors) if self.fields else self.prior


def _with_fields(prior: Any, fields: dict[str, Any]) -> Any:
    """A shallow copy of a frozen dataclass with some fields set, without running its checks again."""
    if type(prior) is Normal:  # every forward asks for one
        changed = Normal.__new__(Normal)
        changed.__dict__.update(prior.__dict__, **fields)
        return changed
    changed = copy.copy(prior)
    for name, value in fields.items():
        object.__setattr__(changed, name, value)
    return changed
