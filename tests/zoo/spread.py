r"""Does the spread of sampled predictions agree with weights that are perturbed by hand?

Two independent sets of N outputs: the Bayesian model inside ``sampling``, and a plain copy of the source whose weights
are set to :math:`\mu + \sigma \epsilon`. For each output element the log ratio of the two variances has variance
:math:`(\kappa_1 + \kappa_2 - 2) / N`, with kurtosis :math:`\kappa`. Two bounds: each element within the normal quantile
for the number of elements (family-wise, 1e-6), and the mean over all elements within five standard errors, by the
jackknife over groups of samples, which sees what all elements have in common, such as one sigma for all that is wrong.
"""

from __future__ import annotations

import copy
from collections.abc import Callable
from statistics import NormalDist

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from bensemble import named_posteriors, sampling

from .forward import floating, run
from .subject import Subject

GROUPS = 20
#: Models over all libraries for which the zoo makes this comparison.
SPREAD = frozenset(
    {f"torch/{name}" for name in ["encoder", "tagger", "wavenet", "cross_attention", "language_model"]}
    | {f"torchvision/{name}" for name in ["mobilenet_v3_small", "shufflenet_v2_x0_5", "squeezenet1_1", "mnasnet0_5"]}
    | {f"timm/{name}" for name in ["test_vit", "test_convnext", "test_nfnet", "test_maxvit", "test_byobnet"]}
    | {f"transformers/{name}" for name in ["bert", "gpt2", "t5", "mixtral", "mamba", "vit", "clip"]}
    | {"diffusers/unet2d", "diffusers/dit", "others/x_transformers_tied", "others/conformer_conformer"}
)


def spread_agrees(subject: Subject, samples: int = 400, factor: float = 1.0, drawn: Tensor | None = None) -> None:
    """Raise unless both ways to sample have the same spread.

    Args:
        subject: A converted model.
        samples: Number of draws each way.
        factor: What sigma is multiplied with in the copy; another value than 1 must raise.
        drawn: What :func:`drawn_outputs` gave for as many samples; by default it is asked here.
    """
    drawn = drawn_outputs(subject, samples) if drawn is None else drawn
    plain = copy.deepcopy(subject.source)
    byhand = _collect(samples, lambda seed: _perturbed(subject, plain, factor, seed + samples))
    moving = (drawn.std(0) > 1e-6 * drawn.abs().amax().clamp_min(1e-30)) & (byhand.std(0) > 0)
    assert bool(moving.any()), "no output element moves"
    drawn, byhand = drawn[:, moving], byhand[:, moving]
    ratio = _log_variance(drawn) - _log_variance(byhand)
    error = ((_kurtosis(drawn) + _kurtosis(byhand) - 2) / samples).clamp_min(0).sqrt()
    quantile = NormalDist().inv_cdf(1 - 1e-6 / (2 * ratio.numel()))
    worst = float((ratio.abs() / error).max())
    pooled, pooled_error = float(ratio.mean()), _jackknife(drawn, byhand)
    subject.result.facts["spread"] = {"pooled": round(pooled, 3), "error": round(pooled_error, 3)}
    assert abs(pooled) <= 5 * pooled_error, f"all variances off by {pooled:.3f} +- {pooled_error:.3f} (log)"
    assert worst <= quantile, f"a variance is off by {worst:.1f} standard errors, more than {quantile:.1f}"


def drawn_outputs(subject: Subject, samples: int) -> Tensor:
    """Outputs of the Bayesian model, one row for each sample."""
    return _collect(samples, lambda seed: _sampled(subject, seed))


def _collect(samples: int, draw: Callable[[int], Tensor]) -> Tensor:
    """One row of output elements for each sample, at most 500 elements."""
    flat = torch.stack([draw(seed) for seed in range(samples)])
    keep = torch.randperm(flat.shape[1], generator=torch.Generator().manual_seed(0))[:500]
    return flat[:, keep]


def _flat(outputs: dict[str, Tensor]) -> Tensor:
    values = [torch.view_as_real(v) if v.is_complex() else v for v in floating(outputs).values()]
    return torch.cat([value.double().flatten() for value in values])


def _sampled(subject: Subject, seed: int) -> Tensor:
    with sampling(subject.bnn, torch.Generator().manual_seed(seed)):
        return _flat(run(subject.bnn, subject.example.inputs))


def _perturbed(subject: Subject, plain: nn.Module, factor: float, seed: int) -> Tensor:
    parameters, generator = dict(plain.named_parameters()), torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for name, posterior in named_posteriors(subject.bnn):
            noise = torch.randn(posterior.mu.shape, generator=generator, dtype=torch.float64)
            sigma = F.softplus(posterior.rho.double())
            parameters[name].copy_(posterior.mu.double() + factor * sigma * noise)
    return _flat(run(plain, subject.example.inputs))


def _log_variance(values: Tensor) -> Tensor:
    return values.var(0).log()


def _kurtosis(values: Tensor) -> Tensor:
    centred = values - values.mean(0)
    return centred.pow(4).mean(0) / centred.square().mean(0).square()


def _jackknife(drawn: Tensor, byhand: Tensor) -> float:
    """Standard error of the mean log ratio, from leaving out one group of samples after another."""
    estimates = torch.stack(
        [(_log_variance(_without(drawn, g)) - _log_variance(_without(byhand, g))).mean() for g in range(GROUPS)]
    )
    return float(((GROUPS - 1) / GROUPS * (estimates - estimates.mean()).square().sum()).sqrt())


def _without(values: Tensor, group: int) -> Tensor:
    return values[torch.arange(len(values)) % GROUPS != group]
