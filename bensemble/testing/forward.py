"""Contracts of the forward in the three states of a layer."""

from __future__ import annotations

import copy
import math
from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.testing import assert_close

from ..gaussian import rho_from_sigma
from ..layers import BaseBayesianLayer, LinearOpLayer
from ..posterior import Posterior
from ..prediction.contexts import sampling
from .case import Case, require, require_equal, seeded
from .moments import Moments, require_same_moments

__all__ = ["CONTRACTS"]


def mean(case: Case) -> None:
    """In eval() the layer equals the deterministic module bit for bit, and it is an instance of the same type."""
    for dtype in case.dtypes:
        layer, twin = case.pair()
        if twin is None:
            return
        x = case.make_input().to(dtype)
        layer, twin = layer.to(dtype).eval(), twin.to(dtype).eval()
        require(isinstance(layer, type(twin)), f"the layer is not a {type(twin).__name__}")
        require_equal(layer(x), twin(x), f"outputs in eval() and {dtype}")
        for posterior in layer.posteriors():
            require(getattr(layer, posterior.name) is posterior.mu, f"{posterior.name} in eval() is not the mean")


@torch.no_grad()
def noise(case: Case) -> None:
    """A training forward has the mean and the variance of naive weight sampling, output by output.

    These are exact where the module is linear in its weights, Var[y] = sum_i (dy/dw_i)^2 sigma_i^2, else sampled.
    """
    layer, twin = case.pair()
    if twin is None:
        return
    x = _probes(case.make_input())
    center = twin(x)
    variance = _variance_of_linear(layer, twin, x)
    if variance is None:
        count, size = case.num_samples, float(case.num_samples)
        naive = _sampled(layer, twin, x, count)
        mean, variance = naive.mean(), naive.variance()
    else:
        count, size = -(-case.num_samples // 2), math.inf  # as strict as two samples, each of which has errors
        mean = torch.zeros_like(variance)
    # One draw of the weights per forward makes one sample; noise per activation makes as many as there are rows.
    is_local = isinstance(layer, LinearOpLayer) and layer.estimator == "local"
    copies = max(1, min(count, 1_000_000 // center.numel())) if is_local else 1
    many = x.repeat(copies, *[1] * (x.dim() - 1))
    trained = Moments()
    while trained.count < count:
        with torch.enable_grad():  # as in training, where other code may run
            output = layer(many)
        trained.add(output.detach().unflatten(0, (copies, -1)) - center)
    require_same_moments(trained, mean, variance, "a training forward", size)


def samples(case: Case) -> None:
    """A weight read in train(), or inside ``sampling``, is a draw from N(mu, sigma^2)."""
    layer, twin = case.pair()
    if twin is None:
        return
    for state in ("train()", "sampling"):
        found = {posterior.name: Moments() for posterior in layer.posteriors()}
        with torch.no_grad():
            for _ in range(case.num_samples // 3):  # enough for a comparison with exact values
                with sampling(layer) if state == "sampling" else nullcontext():
                    for posterior in layer.posteriors():
                        found[posterior.name].add((getattr(layer, posterior.name) - posterior.mu)[None])
        for posterior in layer.posteriors():
            expected = torch.zeros_like(posterior.mu), posterior.sigma().detach().square()
            require_same_moments(found[posterior.name], *expected, f"{posterior.name} in {state}")


def held(case: Case) -> None:
    """Inside ``sampling`` every forward equals that of a deterministic module with the same weights.

    With a generator, the same seed gives the same sample, and torch's default generator does not change.
    """
    layer, twin = case.pair()
    x = case.make_input()
    for training in (True, False):
        layer.train(training)
        before = torch.get_rng_state()
        outputs = []
        for seed in (0, 0, 1):
            with sampling(layer, torch.Generator().manual_seed(seed)):
                outputs.append(layer(x))
                require_equal(layer(x), outputs[-1], "two forwards in one sampling context")
                with torch.no_grad():
                    assert_close(layer(x), outputs[-1].detach())
                    if twin is not None:
                        for posterior in layer.posteriors():
                            getattr(twin, posterior.name).copy_(getattr(layer, posterior.name))
                        assert_close(outputs[-1].detach(), twin.train(training)(x))
        require_equal(outputs[0], outputs[1], "samples of the same seed")
        require(not torch.equal(outputs[0], outputs[2]), "samples of different seeds are equal")
        require_equal(torch.get_rng_state(), before, "states of torch's generator around sampling with another")


def gradients(case: Case) -> None:
    """Gradients agree with finite differences (float64, noise held), and stay finite for extreme inputs and sigmas."""
    layer, x = case.layer().double(), case.make_input().double()
    names = list(dict(layer.named_parameters()))

    def run(*values: Tensor) -> Tensor:
        with seeded(0):
            return torch.func.functional_call(layer, dict(zip(names, values[:-1], strict=True)), values[-1])

    inputs = [t.detach().clone().requires_grad_() for t in (*layer.parameters(), x)]
    for state in ("train()", "sampling"):
        with sampling(layer) if state == "sampling" else nullcontext():
            right = torch.autograd.gradcheck(run, inputs, fast_mode=True, raise_exception=False)
            require(right, f"gradients in {state} disagree with finite differences")
    for sigma in (1e-12, 0.1, 100.0):
        for scale in (0.0, 1.0, 1e3):
            layer = case.layer()
            for posterior in layer.posteriors():
                nn.init.constant_(posterior.rho, float(rho_from_sigma(torch.tensor(sigma))))
            (layer(scale * case.make_input()).square().mean() + layer.kl_divergence()).backward()
            for name, p in layer.named_parameters():
                finite = p.grad is not None and bool(p.grad.isfinite().all())
                require(finite, f"the gradient of {name} at sigma {sigma:g} and inputs times {scale:g} is not finite")


def _sampled(layer: BaseBayesianLayer, twin: nn.Module, x: Tensor, count: int) -> Moments:
    """Moments of the module's outputs, less those at the means, while its weights are drawn."""
    center, found = twin(x), Moments()
    posteriors = [(getattr(twin, p.name), p.mu.clone(), p.sigma()) for p in layer.posteriors()]
    for _ in range(count):
        for weight, mu, sigma in posteriors:
            weight.copy_(mu + sigma * torch.randn(mu.shape))
        found.add((twin(x) - center)[None])
    return found


def _variance_of_linear(layer: BaseBayesianLayer, twin: nn.Module, x: Tensor) -> Tensor | None:
    """Exact variance of the module's outputs, weight by weight in float64; None if they are not linear in the weights.

    The column of a weight is what its output changes by while the weight changes by 1; in a rotated basis, its
    coordinate.
    """
    twin, x = copy.deepcopy(twin).double(), x.double()
    center = twin(x)
    variance, together = torch.zeros_like(center), torch.zeros_like(center)
    named = {posterior.name: posterior for posterior in layer.posteriors()}
    step = {posterior.name: torch.randn_like(posterior.mu, dtype=torch.float64) for posterior in layer.posteriors()}
    for posterior in layer.posteriors():
        weight = getattr(twin, posterior.name)
        before = weight.clone()
        units = torch.eye(before.numel(), dtype=torch.float64).view(-1, *before.shape)
        for unit, sigma, length in zip(
            units, posterior.scale().double().flatten(), step[posterior.name].flatten(), strict=True
        ):
            weight.copy_(before + _in_plain_basis(posterior, unit))
            column = twin(x) - center
            variance += (sigma * column).square()
            together += length * column
        weight.copy_(before)
    for name, length in step.items():
        getattr(twin, name).add_(_in_plain_basis(named[name], length))
    return variance if torch.allclose(twin(x), center + together, rtol=1e-6, atol=1e-9) else None


def _in_plain_basis(posterior: Posterior, coordinates: Tensor) -> Tensor:
    basis = posterior.basis
    return coordinates if basis is None else basis.double().to_plain(coordinates)


def _probes(x: Tensor) -> Tensor:
    """The input, zeros, and inputs with one nonzero element, whose outputs depend on few weights each."""
    one = torch.zeros_like(x[:1])
    places = torch.randperm(one.numel())[:48]
    single = one.flatten(1).repeat(len(places), 1)
    values = (1 + torch.rand(len(places))) * torch.randn(len(places)).sign()
    single[torch.arange(len(places)), places] = values
    return torch.cat([x, one, single.unflatten(1, x.shape[1:])])


CONTRACTS: dict[str, Callable[[Case], None]] = {
    "mean": mean,
    "noise": noise,
    "samples": samples,
    "held": held,
    "gradients": gradients,
}
