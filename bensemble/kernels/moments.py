r"""The moments of a weight tensor, mu and sigma^2, with its KL: one pass over the weights, and one pass back.

A step needs sigma^2 for the variance of the pre-activations and again for the KL; both share one node of the autograd
graph. Its backward gets the slopes that the layer found for mu and sigma^2, adds those of the KL and goes to rho in the
same pass:

.. math:: \frac{dL}{d\rho} = \left(2\sigma\frac{dL}{d\sigma^2} + g\,\frac{dKL}{d\sigma}\right) \mathrm{sigmoid}(\rho)
"""

from __future__ import annotations

import math
import threading
import weakref
from typing import Any

import torch
from torch import Tensor

from ..gaussian import precise, sigma_from_rho, tracing
from ..torch_internals import version
from .blocks import blocks, dense, like, scratches
from .divergence import Block, Divergence, divergence_to
from .softplus import softplus

__all__ = ["Moments", "applies_to", "fused_kl", "shared_moments"]


class Moments:
    """What one pass over a weight tensor gives.

    Attributes:
        mean: mu, as an output of the node.
        variance: sigma^2.
        kl: The KL to the prior in nats, summed; None where the plain formula has to do.
    """

    __slots__ = ("__weakref__", "kl", "mean", "variance")

    def __init__(self, mean: Tensor, variance: Tensor, kl: Tensor | None) -> None:
        self.mean, self.variance, self.kl = mean, variance, kl


#: Between these rho the variance and its root are exact in float32; elsewhere the plain formula runs.
_LEAST_RHO, _MOST_RHO = -43.0, 80.0

_shared: weakref.WeakValueDictionary[tuple[Any, ...], Moments] = weakref.WeakValueDictionary()


def applies_to(*tensors: Tensor | None) -> bool:
    """Whether the kernels can run: dense float32 tensors on the CPU, seen by nobody but eager autograd."""
    if tracing() or torch.is_autocast_enabled("cpu") or torch.is_inference_mode_enabled():
        return False
    return all(
        t is None or (t.dtype is torch.float32 and t.device.type == "cpu" and type(t) in (Tensor, torch.nn.Parameter))
        for t in tensors
    )


def shared_moments(mu: Tensor, rho: Tensor, prior: Any) -> Moments:
    """The moments of a weight, shared for as long as somebody holds them and the weight does not change."""
    divergence = divergence_to(prior)
    key = _key(mu, rho, divergence)
    found = _shared.get(key)
    if found is None:
        mean, variance, kl = _Moments.apply(mu, rho, divergence)
        found = Moments(
            mean if mu.requires_grad else mean.detach(), variance if rho.requires_grad else variance.detach(), kl
        )
        _shared[key] = found
    return found


def fused_kl(mu: Tensor, rho: Tensor, prior: Any) -> Tensor | None:
    """KL(N(mu, softplus(rho)^2) || prior) in nats, summed; None where the plain formula has to do."""
    divergence = divergence_to(prior)
    if divergence is None:
        return None
    found = _shared.get(_key(mu, rho, divergence))
    return found.kl if found is not None else _Moments.apply(mu, rho, divergence)[2]


def _key(mu: Tensor, rho: Tensor, divergence: Divergence | None) -> tuple[Any, ...]:
    """Tells a weight in its present state from every other."""
    # Writes through .data do not count as a new version, so a sum over each tensor belongs to the key.
    states = [(id(t), t.data_ptr(), version(t), float(t.detach().sum())) for t in (mu, rho)]
    return (
        threading.get_ident(),
        torch.is_grad_enabled(),
        *states,
        None if divergence is None else (type(divergence), *divergence.key),
    )


class _Moments(torch.autograd.Function):
    """(mu, rho) -> (mu, sigma^2, KL).

    Unlike other nodes it can run back more than once, as when the NLL and the KL are differentiated one by one:
    sigma^2 is given up after the first time, and computed again when need be.
    """

    @staticmethod
    def forward(ctx: Any, *args: Any) -> tuple[Tensor, Tensor, Tensor | None]:
        mu, rho, divergence = args
        variance, kl = _forward_pass(mu.detach(), rho.detach(), divergence)
        ctx.inputs, ctx.versions = (mu, rho), (version(mu), version(rho))
        ctx.divergence, ctx.variance = divergence, None
        ctx.short_cut = variance is not None
        ctx.set_materialize_grads(False)
        if variance is None:
            return mu.view_as(mu), *_plain(mu, rho, divergence)
        ctx.variance = variance.detach()
        return mu.view_as(mu), variance, kl

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        mu, rho = ctx.inputs
        if ctx.versions != (version(mu), version(rho)):
            raise RuntimeError("mu or rho of a Bayesian layer was changed in place between its forward and backward.")
        if torch.is_grad_enabled() or not ctx.short_cut:
            found = iter(_plain_gradients(mu, rho, ctx.divergence, grads, ctx.needs_input_grad))
            return (*(next(found) if need else None for need in ctx.needs_input_grad[:2]), None)
        variance, ctx.variance = ctx.variance, None
        if variance is None:
            variance = sigma_from_rho(dense(rho.detach())).square()
        return (*_backward_pass(mu.detach(), rho.detach(), variance, ctx.divergence, grads), None)


# -- the short way


def _forward_pass(mu: Tensor, rho: Tensor, divergence: Divergence | None) -> tuple[Tensor | None, Tensor | None]:
    """sigma^2 and the KL; None for both where float32 is too narrow for the short way."""
    rho = dense(rho)
    variance, total = torch.empty_like(rho), 0.0
    sigma, scratch = scratches(2, rho.numel())
    for pieces in blocks(like(mu, rho), rho, variance, _center(divergence, rho)):
        block = Block(*pieces)
        n = block.rho.numel()
        least, most = map(float, block.rho.aminmax())
        if not (least >= _LEAST_RHO and most <= _MOST_RHO):
            return None, None
        s = softplus(block.rho, most, sigma[:n], scratch[:n])
        torch.mul(s, s, out=block.variance)
        if divergence is not None:
            total += divergence.value(block, most, s, scratch[:n])
    if not math.isfinite(total):
        return None, None
    return variance, None if divergence is None else torch.tensor(total, dtype=torch.float32, device="cpu")


def _backward_pass(
    mu: Tensor, rho: Tensor, variance: Tensor, divergence: Divergence | None, grads: tuple[Tensor | None, ...]
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of mu and rho, in place of those of mu and sigma^2: nobody else holds these."""
    g_mean, g_variance, g_kl = grads
    with_kl = divergence is not None and g_kl is not None
    if g_variance is None and not with_kl:
        return g_mean, None
    rho = dense(rho)
    g_rho = torch.zeros_like(rho) if g_variance is None else like(g_variance, rho)
    g_mu = g_mean
    if with_kl:
        g_mu = torch.zeros_like(rho) if g_mean is None else like(g_mean, rho)
    scale = float(g_kl) if g_kl is not None else 0.0
    (scratch,) = scratches(1, rho.numel())
    for gm, g, *pieces in blocks(g_mu, g_rho, like(mu, rho), rho, variance, _center(divergence, rho)):
        block = Block(*pieces)
        other = scratch[: block.rho.numel()]
        if divergence is not None and with_kl:
            divergence.add_slopes_(scale, block, gm, g, other)
        else:
            g.mul_(block.variance).mul_(2.0)
        g.mul_(torch.rsqrt(block.variance, out=other)).mul_(torch.sigmoid(block.rho, out=other))
    return g_mu, g_rho


def _center(divergence: Divergence | None, rho: Tensor) -> Tensor | None:
    """The tensor of prior means in the layout of rho, if there is one."""
    return None if divergence is None or divergence.center is None else like(divergence.center, rho)


# -- the plain formulas


def _plain(mu: Tensor, rho: Tensor, divergence: Divergence | None) -> tuple[Tensor, Tensor | None]:
    sigma = sigma_from_rho(rho)
    return sigma.square(), None if divergence is None else divergence.prior.kl(precise(mu), sigma)


def _plain_gradients(
    mu: Tensor,
    rho: Tensor,
    divergence: Divergence | None,
    grads: tuple[Tensor | None, ...],
    needs: tuple[bool, ...],
) -> tuple[Tensor | None, ...]:
    """Gradients through the plain formulas, which can be differentiated again."""
    again = torch.is_grad_enabled()
    with torch.enable_grad():
        outputs = (mu.view_as(mu), *_plain(mu, rho, divergence))
        used = [(out, grad) for out, grad in zip(outputs, grads, strict=True) if out is not None and grad is not None]
        used = [(out, grad) for out, grad in used if out.requires_grad]
        wanted = [t for t, need in zip((mu, rho), needs, strict=False) if need]
        return torch.autograd.grad(
            [out for out, _ in used], wanted, [grad for _, grad in used], create_graph=again, allow_unused=True
        )
