"""The numbers of posteriors against oracles: the KL of torch.distributions, and the size of the noise."""

from __future__ import annotations

import copy

import torch
from torch import Tensor, nn
from torch.distributions import Normal, kl_divergence
from zoo.forward import run
from zoo.subject import training

import bensemble
import convert
from bensemble import named_posteriors, sampling
from bensemble.layers import LinearOpLayer

from .subject import RandomSubject

__all__ = ["kl_is_that_of_torch", "local_noise_has_its_size", "samples_have_the_size_of_sigma"]

#: Standard errors that a mean square of standard normal numbers may be off; 1e-9 of all fair ones are.
STANDARD_ERRORS = 6.0


def kl_is_that_of_torch(subject: RandomSubject) -> None:
    """After a move of every mean and rho, the KL is that of torch.distributions for the prior that was asked for."""
    bnn, source = copy.deepcopy(subject.bnn), dict(subject.source.named_parameters())
    generator = torch.Generator().manual_seed(4)
    expected, started = 0.0, subject.posteriors
    with torch.no_grad():
        for name, posterior in named_posteriors(bnn):
            start = nn.functional.softplus(started[name].rho.double())
            for tensor, by in ((posterior.mu, 0.1), (posterior.rho, 0.5)):
                tensor.mul_(1 + by * torch.randn(tensor.shape, generator=generator).to(tensor))
            now = Normal(posterior.mu.double(), nn.functional.softplus(posterior.rho.double()))
            expected += float(kl_divergence(now, _prior(subject.recipe.prior, source[name].double(), start, now)).sum())
    found = float(bensemble.kl_divergence(bnn).detach())
    assert abs(found - expected) <= 1e-4 * abs(expected), f"KL is {found}, torch.distributions says {expected}"


def _prior(name: str, trained: Tensor, start: Tensor, now: Normal) -> Normal:
    """What the name of a prior means for a weight with its sigma at the start and its posterior now."""
    if name == "pretrained":
        return Normal(trained, start)
    if name == "empirical":
        return Normal(0.0, (trained.square() + start.square()).mean().sqrt())
    return Normal(0.0, 1.0 if name == "normal" else (now.mean.square() + now.variance).sqrt())


def samples_have_the_size_of_sigma(subject: RandomSubject) -> None:
    """Held samples are sigma away from their means, sigma = softplus(rho)."""
    squares = []
    with sampling(subject.bnn, torch.Generator().manual_seed(5)), torch.no_grad():
        for name, posterior in subject.posteriors.items():
            if posterior.mu.dtype == torch.bfloat16:
                continue  # rounding is part of the noise there
            path, _, leaf = name.rpartition(".")
            held = getattr(subject.bnn.get_submodule(path), leaf)
            sigma = nn.functional.softplus(posterior.rho)
            squares.append(((held - posterior.mu) / sigma).square().double().flatten())
    _assert_mean_square_of_one(squares, "samples")


def local_noise_has_its_size(subject: RandomSubject) -> None:
    """In training each call of a layer with local noise is op(x^2, sigma^2) around op(x, mu), in its variance."""
    calls: list[tuple[LinearOpLayer, Tensor, Tensor]] = []
    handles = [
        layer.register_forward_hook(lambda m, args, out: calls.append((m, args[0].detach(), out.detach().clone())))
        for layer in subject.bnn.modules()
        if isinstance(layer, LinearOpLayer) and layer.w_mu.dtype != torch.bfloat16
    ]
    with training(subject.bnn):
        run(subject.bnn, subject.train_inputs, grad=True)  # without gradients other code runs
    for handle in handles:
        handle.remove()
    run(subject.bnn, subject.example.inputs)  # modules that keep a tensor of the last forward drop the graph
    squares = []
    for layer, x, y in calls:
        if layer.estimator != "local":
            continue
        layer = copy.deepcopy(layer)
        layer._forward_hooks.clear()
        sigmas = {p.name: nn.functional.softplus(p.rho.detach()) for p in layer.posteriors()}
        plain = convert.to_deterministic(layer)
        with torch.no_grad():
            mean = plain(x)
            for name, parameter in plain.named_parameters():
                parameter.copy_(sigmas[name].square() if name in sigmas else torch.zeros_like(parameter))
            variance = plain(x.square())
        seen = variance > 1e-12  # dead inputs make no noise
        squares.append(((y - mean)[seen].square() / variance[seen]).double())
    _assert_mean_square_of_one(squares, "activations")


def _assert_mean_square_of_one(squares: list[Tensor], what: str) -> None:
    count = sum(map(len, squares))
    if count < 100:
        return
    mean = float(torch.cat(squares).mean())
    off = abs(mean - 1.0) / (2.0 / count) ** 0.5
    assert off < STANDARD_ERRORS, f"noise of {what}: mean square {mean:.3f}, {off:.1f} standard errors off"
