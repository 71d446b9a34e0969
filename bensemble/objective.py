r"""The variational objective of a whole model, and further parts of a training loop.

The evidence lower bound per term (Blundell et al. 2015, equation 2, over the number of terms):

.. math:: L = E_q[-\log p(y | x, w)] + \frac{\beta}{N} KL(q \,\|\, p)
"""

from __future__ import annotations

import math
import warnings
from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .checks import check_module, check_number
from .errors import InvalidValueError
from .layers.base import BaseBayesianLayer
from .models.batches import device_of
from .models.ranks import warn_of_equal_noise
from .models.sharding import PartialSums
from .posteriors import is_bayesian, named_posteriors

__all__ = [
    "distillation_loss",
    "elbo_loss",
    "kl_divergence",
    "kl_warmup",
    "param_groups",
    "posterior_summary",
    "quantiles",
]


def kl_divergence(model: nn.Module) -> Tensor:
    """KL(q || p) of the whole model, in nats, summed over all posteriors; a shared posterior counts once.

    For a model sharded by ``fully_shard`` all processes must call it, and the result is equal in all of them.
    DistributedDataParallel and FSDP2 average gradients over processes, so the KL counts once. Warns if all processes
    draw the same noise.

    A layer that overrides ``BaseBayesianLayer.kl_divergence`` contributes the result of its own method.

    Args:
        model: Any module.

    Returns:
        Scalar on the model's device, differentiable; 0 without Bayesian layers, with a warning.

    Example:
        >>> nats = bensemble.kl_divergence(bnn)
    """
    own = any(isinstance(layer, BaseBayesianLayer) for layer in check_module("kl_divergence", model).modules())
    if not own and not is_bayesian(model) and not torch.compiler.is_compiling():
        warnings.warn(
            f"kl_divergence: {type(model).__name__} has no posteriors, so the KL is 0; call convert.bayesify first.",
            UserWarning,
            stacklevel=2,
        )
    return _kl(model)


def _kl(model: nn.Module) -> Tensor:
    device = device_of(model)
    if model.training and torch.is_grad_enabled() and not torch.compiler.is_compiling():
        warn_of_equal_noise("kl_divergence", device)
    sums = PartialSums(device)
    counted: set[int] = set()
    # Layers that override kl_divergence come first: their result cannot leave out a posterior counted before.
    for layer in model.modules():
        if isinstance(layer, BaseBayesianLayer) and type(layer).kl_divergence is not BaseBayesianLayer.kl_divergence:
            means = {id(posterior.mu) for posterior in layer.posteriors()}
            if not means or means - counted:
                sums.add(layer.kl_divergence())
            counted |= means
    for _, posterior in named_posteriors(model):
        if id(posterior.mu) not in counted:
            posterior.add_kl(sums)
    return sums.total()


def elbo_loss(nll: Tensor, kl: Tensor, num_data: int, beta: float = 1.0) -> Tensor:
    """The negative evidence lower bound per term, ``nll + beta * kl / num_data``, in nats; lower is better.

    Args:
        nll: Negative log likelihood, the mean over the terms of a batch.
        kl: ``kl_divergence(model)``, a sum.
        num_data: Number of terms in the whole training set, also with gradient accumulation. A term is what the mean of
            ``nll`` runs over: an example, a token or a pixel.
        beta: Weight of the KL: 1 for the bound itself, less to temper the posterior.

    Raises:
        InvalidValueError: ``num_data`` is not above 0, ``beta`` is negative or not finite, or a term is not a scalar.

    Example:
        >>> loss = bensemble.elbo_loss(F.cross_entropy(bnn(x), y), bensemble.kl_divergence(bnn), num_data=1000)
    """
    check_number("elbo_loss", "num_data", num_data, above=0)
    check_number("elbo_loss", "beta", beta, least=0)
    for name, value in (("nll", nll), ("kl", kl)):
        if isinstance(value, Tensor) and value.ndim:
            raise InvalidValueError(
                f"elbo_loss: {name} must be a scalar, got shape {tuple(value.shape)}; reduce it first."
            )
    return nll + (beta / num_data) * kl


def kl_warmup(step: int, total: int, fraction: float = 0.3) -> float:
    """Weight of the KL that rises linearly from 0 to 1 in the first part of the training and then stays 1.

    Args:
        step: Steps done.
        total: Steps of the whole training.
        fraction: Share of the training in which the weight rises; with 0 the weight is always 1.

    Raises:
        InvalidValueError: ``step`` is negative, ``total`` is not above 0, or ``fraction`` is outside [0, 1].

    Example:
        >>> bensemble.kl_warmup(step=30, total=1000)
        0.1
    """
    check_number("kl_warmup", "step", step, least=0)
    check_number("kl_warmup", "total", total, above=0)
    check_number("kl_warmup", "fraction", fraction, least=0, most=1)
    return 1.0 if step >= fraction * total else step / (fraction * total)


def distillation_loss(logits: Tensor, teacher: Tensor, temperature: float = 2.0, dim: int = -1) -> Tensor:
    """How far the classes of a network are from those of its teacher, such as the network before it was pruned.

    T² KL(softmax(teacher / T) || softmax(logits / T)), the mean over all terms (Hinton, Vinyals & Dean 2015,
    "Distilling the Knowledge in a Neural Network", section 2). With labels, take half of it and half of the
    cross-entropy.

    Args:
        logits: Of the network in training, (..., C) by default.
        teacher: Of the teacher, in the same shape. It gets no gradient.
        temperature: T. Above 1 the wrong classes count more.
        dim: The axis of the classes.

    Returns:
        Scalar in nats, 0 where the two agree.

    Raises:
        InvalidValueError: The shapes differ, there are fewer than two classes, or ``temperature`` is not above 0.

    Example:
        >>> teacher = model(x).detach()
        >>> loss = 0.5 * F.cross_entropy(bnn(x), y) + 0.5 * bensemble.distillation_loss(bnn(x), teacher)
    """
    check_number("distillation_loss", "temperature", temperature, above=0)
    if logits.shape != teacher.shape or not logits.ndim or logits.shape[dim] < 2:
        raise InvalidValueError(
            f"distillation_loss: logits and teacher must have one shape with at least two classes in axis {dim}, got "
            f"{tuple(logits.shape)} and {tuple(teacher.shape)}."
        )
    own, wanted = (F.log_softmax(z / temperature, dim) for z in (logits, teacher.detach()))
    return temperature**2 * F.kl_div(own, wanted, reduction="none", log_target=True).sum(dim).mean()


def param_groups(
    model: nn.Module, lr: float, rho_lr: float | None = None, weight_decay: float = 0.0
) -> list[dict[str, Any]]:
    """Optimizer groups in which every parameter of the model occurs once.

    rho has a learning rate of its own. Weight decay applies to deterministic parameters only: on rho it would change
    sigma, and the means are regularised by the prior.

    Args:
        model: The model to train.
        lr: Learning rate of everything but rho.
        rho_lr: Learning rate of rho; default ``lr``. Try ten times ``lr`` if sigma should change much.
        weight_decay: Decay of the deterministic parameters.

    Returns:
        Groups for any torch.optim optimizer, each with a ``name``: ``"mean"``, ``"rho"``, ``"deterministic"``.

    Raises:
        InvalidValueError: A learning rate or the decay is negative or not finite.

    Example:
        >>> optimizer = torch.optim.Adam(bensemble.param_groups(bnn, lr=1e-3, rho_lr=1e-2))
    """
    check_module("param_groups", model)
    rho_lr = lr if rho_lr is None else rho_lr
    for name, value in (("lr", lr), ("rho_lr", rho_lr), ("weight_decay", weight_decay)):
        check_number("param_groups", name, value, least=0)
    posteriors = [posterior for _, posterior in named_posteriors(model)]
    means, rhos = {id(p.mu): p.mu for p in posteriors}, {id(p.rho): p.rho for p in posteriors}
    rest = {id(p): p for p in model.parameters() if id(p) not in means and id(p) not in rhos}
    groups = [
        {"name": "mean", "params": list(means.values()), "lr": lr, "weight_decay": 0.0},
        {"name": "rho", "params": list(rhos.values()), "lr": rho_lr, "weight_decay": 0.0},
        {"name": "deterministic", "params": list(rest.values()), "lr": lr, "weight_decay": weight_decay},
    ]
    return [group for group in groups if group["params"]]


@torch.no_grad()
def posterior_summary(model: nn.Module) -> dict[str, float]:
    """Statistics of the posterior, for a log or an experiment tracker.

    Returns:
        ``weights`` (the number of weights with a posterior), ``kl`` in nats, ``kl_per_weight``, the quantiles
        ``snr_q05``, ``snr_q50``, ``snr_q95`` and ``sigma_q05``, ``sigma_q50``, ``sigma_q95`` over the weights that are
        not pruned, and ``sparsity``, the share that is pruned. Without posteriors only ``weights`` and ``kl``, both 0.

    Example:
        >>> bensemble.posterior_summary(bnn)["weights"]
        170.0
    """
    posteriors = [posterior for _, posterior in named_posteriors(check_module("posterior_summary", model))]
    kl, count = float(_kl(model)), sum(posterior.mu.numel() for posterior in posteriors)
    summary = {"weights": float(count), "kl": kl}
    if not count:
        return summary
    kept = [p.mask.bool().flatten() if p.mask is not None else torch.ones(p.mu.numel()).bool() for p in posteriors]
    for name, values in (("snr", [p.snr() for p in posteriors]), ("sigma", [p.sigma() for p in posteriors])):
        flat = torch.cat([v.flatten().float().cpu()[k.cpu()] for v, k in zip(values, kept, strict=True)])
        found = quantiles(flat, (0.05, 0.5, 0.95))
        summary |= dict(zip((f"{name}_q05", f"{name}_q50", f"{name}_q95"), found, strict=True))
    summary["kl_per_weight"] = kl / count
    summary["sparsity"] = 1.0 - sum(int(k.sum()) for k in kept) / count
    return summary


def quantiles(values: Tensor, shares: Sequence[float]) -> list[float]:
    """The smallest values that so large shares of a flat tensor do not exceed; NaN for an empty one."""
    if not values.numel():
        return [math.nan] * len(shares)
    return [float(values.kthvalue(max(1, math.ceil(values.numel() * share - 1e-9))).values) for share in shares]
