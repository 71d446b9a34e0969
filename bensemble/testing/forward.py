"""Contracts about what a forward computes in the three states of a layer."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import nullcontext

import torch
from torch import Tensor, nn
from torch.testing import assert_close

from ..gaussian import rho_from_sigma
from ..layers import LinearOpLayer
from ..noise.stack import sampling
from .case import Case, require, require_equal, seeded
from .moments import Moments, require_same_moments

__all__ = ["CONTRACTS"]


def mean(case: Case) -> None:
    """In eval() the layer computes what the deterministic module does, bit for bit, and is an instance of its type."""
    for dtype in case.dtypes:
        layer, twin = case.pair()
        if twin is None:
            return
        x = case.make_input().to(dtype)
        layer, twin = layer.to(dtype).eval(), twin.to(dtype).eval()
        require(isinstance(layer, type(twin)), f"the layer is no {type(twin).__name__}")
        require_equal(layer(x), twin(x), f"outputs in eval() and {dtype}")
        for posterior in layer.posteriors():
            require(getattr(layer, posterior.name) is posterior.mu, f"{posterior.name} in eval() is not the mean")


@torch.no_grad()
def noise(case: Case) -> None:
    """A training forward has the mean and the variance of naive weight sampling, output by output."""
    layer, twin = case.pair()
    if twin is None:
        return
    x = _probes(case.make_input())
    center = twin(x)
    # One draw of the weights per forward makes one sample; noise per activation makes as many as there are rows.
    is_local = isinstance(layer, LinearOpLayer) and layer.estimator == "local"
    copies = max(1, min(case.num_samples, 1_000_000 // center.numel())) if is_local else 1
    many = x.repeat(copies, *[1] * (x.dim() - 1))
    trained, naive = Moments(), Moments()
    while trained.count < case.num_samples:
        with torch.enable_grad():  # as in training, where other code may run
            output = layer(many)
        trained.add(output.detach().unflatten(0, (copies, -1)) - center)
    posteriors = [(getattr(twin, p.name), p.mu.clone(), p.sigma()) for p in layer.posteriors()]
    for _ in range(case.num_samples):
        for weight, mu, sigma in posteriors:
            weight.copy_(mu + sigma * torch.randn(mu.shape))
        naive.add((twin(x) - center)[None])
    require_same_moments(trained, naive.mean(), naive.variance(), "a training forward", naive.count)


def samples(case: Case) -> None:
    """A weight read in train(), or inside ``sampling``, is a draw from N(mu, sigma^2)."""
    layer, twin = case.pair()
    if twin is None:
        return
    for state in ("train()", "sampling"):
        found = {posterior.name: Moments() for posterior in layer.posteriors()}
        with torch.no_grad():
            for _ in range(case.num_samples // 3):  # enough against exact values
                with sampling(layer) if state == "sampling" else nullcontext():
                    for posterior in layer.posteriors():
                        found[posterior.name].add((getattr(layer, posterior.name) - posterior.mu)[None])
        for posterior in layer.posteriors():
            expected = torch.zeros_like(posterior.mu), posterior.sigma().detach().square()
            require_same_moments(found[posterior.name], *expected, f"{posterior.name} in {state}")


def held(case: Case) -> None:
    """Inside ``sampling`` every forward uses the same weights, as a deterministic module with them would.

    With a generator, the sample repeats with the seed, and torch's default generator stays where it is.
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


def _probes(x: Tensor) -> Tensor:
    """The input, zeros, and inputs with a single element away from zero, which show the noise of few weights each."""
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
