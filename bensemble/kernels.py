r"""Local reparameterization, weight draws and the KL with gradients in closed form.

They compute what :mod:`bensemble.gaussian` and :mod:`bensemble.priors` say, and keep less for the way back. One pass
over a weight gives :math:`v = \sigma^2` and the KL, and one pass back gives the gradients of both:

.. math:: dL/d\rho = (2v\,dL/dv + dL/dKL\,\cdot dKL/d\log\sigma)\;\mathrm{sigmoid}(\rho) / \sigma

A draw :math:`y = m + \epsilon\sqrt{v}`, of a weight or of a pre-activation, keeps :math:`dy/dv = \epsilon/(2\sqrt{v})`.
Second derivatives come from the plain formulas, and so does everything where :func:`applies_to` says no.
"""

from __future__ import annotations

import math
import threading
import weakref
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from .gaussian import sigma_from_rho, standard_normal_like, tracing
from .operations import Operation
from .priors import ARD, Normal
from .softplus import LEAST_SIGMA, blocks, is_usual, scratch, softplus, times_slope_
from .torch_internals import is_view, version

_PLAIN = (Tensor, torch.nn.Parameter)


def applies_to(first: Tensor, *others: Tensor | None) -> bool:
    """Whether the kernels can run: plain tensors of one device, all float32 or all float64, in eager autograd."""
    dtype, device = first.dtype, first.device
    if tracing() or torch.is_inference_mode_enabled() or dtype not in (torch.float32, torch.float64):
        return False
    if torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type):
        return False
    for t in (first, *others):
        if t is not None and not (type(t) in _PLAIN and t.dtype is dtype and t.device == device):
            return False
    return True


@dataclass(eq=False)
class Moments:
    """Mean and variance of a weight, and its KL in nats: None where that was not asked for or has no closed form."""

    mean: Tensor
    variance: Tensor
    kl: Tensor | None


_shared: weakref.WeakValueDictionary[tuple[Any, ...], Moments] = weakref.WeakValueDictionary()


def shared_moments(mu: Tensor, rho: Tensor, prior: Any) -> Moments:
    """The moments of a weight; on the CPU shared for as long as somebody holds them and nothing has changed."""
    # To look for changes would mean to wait for another device. Without a graph nobody holds them.
    if not rho.is_cpu or not torch.is_grad_enabled():
        return _moments(mu, rho, None)
    key = _state(mu, rho, prior)
    found = _shared.get(key)
    if found is None:
        found = _shared[key] = _moments(mu, rho, prior if _in_closed_form(prior, mu) else None)
    return found


def fused_kl(mu: Tensor, rho: Tensor, prior: Any) -> Tensor | None:
    """KL(N(mu, softplus(rho)^2) || prior) in nats, summed; None where the plain formula has to do."""
    if not _in_closed_form(prior, mu):
        return None
    found = _shared.get(_state(mu, rho, prior)) if rho.is_cpu and torch.is_grad_enabled() else None
    return _moments(mu, rho, prior).kl if found is None else found.kl


def _moments(mu: Tensor, rho: Tensor, prior: Normal | ARD | None) -> Moments:
    mean, variance, kl = _Moments.apply(mu, rho, prior)
    return Moments(
        mean if mu.requires_grad else mean.detach(), variance if rho.requires_grad else variance.detach(), kl
    )


def _in_closed_form(prior: Any, mu: Tensor) -> bool:
    """Whether the gradients of the KL are known here."""
    if type(prior) is not Normal:
        return type(prior) is ARD
    mean = prior.mean
    return prior.is_constant and (not isinstance(mean, Tensor) or (mean.shape == mu.shape and applies_to(mu, mean)))


def _state(mu: Tensor, rho: Tensor, prior: Any) -> tuple[Any, ...]:
    """Tells a weight and its prior from every other, and from every other state of themselves."""
    parts = (mu, rho, *((prior.sigma, prior.mean) if type(prior) is Normal else ()))
    # Writes through .data do not count as a new version, so the sum over a tensor belongs to its state.
    states = (
        (id(p), p.data_ptr(), version(p), (p.detach().sum() if p.dim() else p).item()) if isinstance(p, Tensor) else p
        for p in parts
    )
    return (threading.get_ident(), type(prior), *states)


class _Moments(torch.autograd.Function):
    """(mu, rho) -> (mu, sigma^2, KL).

    It can run back more than once, as when the NLL and the KL are differentiated one by one: so it checks the versions
    of its inputs itself, gives sigma^2 up after the first time, and computes it again when need be.
    """

    @staticmethod
    def forward(ctx: Any, *args: Any) -> tuple[Tensor, Tensor, Tensor | None]:
        mu, rho, prior = args
        means, precision, offset = _constants(prior, rho)
        variance, usual = torch.empty_like(rho), is_usual(rho)
        number = Tensor.item if rho.is_cpu else Tensor.detach  # another device is not waited for
        kl: Any = 0.0
        for m, r, v, center in blocks(mu, rho, variance, means):
            sigma = softplus(r, usual)
            torch.mul(sigma, sigma, out=v)
            if type(prior) is Normal:  # as kl_normal has it, with less memory
                distance = (m if center is None else m - center).reshape(-1)
                square, spread = number(torch.dot(distance, distance)), number(v.sum())
                # The usual log sigma needs no logarithm: rho - sigma / 2 - sigma^2 / 24 + ...
                logs = number(r.sum()) - number(sigma.sum()) / 2 - spread / 24 if usual else number(sigma.log_().sum())
                kl = kl + (0.5 * precision * (square + spread) - logs + v.numel() * offset)
            elif prior is not None:
                kl = kl + number(prior.kl(m, sigma))
        ctx.inputs, ctx.versions, ctx.prior = (mu, rho), (version(mu), version(rho)), prior
        ctx.variance, ctx.usual = variance.detach(), usual
        ctx.set_materialize_grads(False)
        return mu.view_as(mu), variance, None if prior is None else rho.new_zeros(()).add_(kl)

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        (mu, rho), (g_mu, g_rho, g_kl), prior = ctx.inputs, grads, ctx.prior
        if ctx.versions != (version(mu), version(rho)):
            raise RuntimeError("mu or rho of a Bayesian layer was changed in place between its forward and backward.")
        if torch.is_grad_enabled():
            return _differentiable(mu, rho, prior, grads)
        if g_rho is None and g_kl is None:
            return g_mu, None, None
        variance, ctx.variance = ctx.variance, None
        if variance is None:
            variance = torch.empty_like(rho)
            for r, v in blocks(rho.detach(), variance):
                torch.square(softplus(r, ctx.usual), out=v)
        g_mu = torch.zeros_like(mu) if g_mu is None and g_kl is not None else g_mu
        g_rho = torch.zeros_like(variance) if g_rho is None else g_rho
        means, precision, _ = _constants(prior, rho)
        pull = None if g_kl is None or precision is None else g_kl * precision
        # In place of the gradients that come in: nobody else holds them. That of v becomes that of log sigma, then rho.
        for g, gm, m, r, v, center in blocks(g_rho, g_mu, mu, rho, variance, means):
            if g_kl is None:
                g.mul_(v).mul_(2.0)
            elif pull is not None:
                gm.addcmul_(m if center is None else m - center, pull)
                torch.addcmul(-g_kl, g.add_(0.5 * pull), v, value=2.0, out=g)
            else:
                share = torch.addcmul(v, m, m).clamp_min_(LEAST_SIGMA**2).reciprocal_().mul_(g_kl).mul_(m)
                gm.add_(share)
                g.mul_(v).mul_(2.0).sub_(share.mul_(m))
            times_slope_(g, r, v, ctx.usual)
        return g_mu, g_rho, None


def _constants(prior: Normal | ARD | None, like: Tensor) -> tuple[Any, Any, Any]:
    """Of a normal prior N(m, s^2): m unless it is zero, 1 / s^2, and log s - 1/2."""
    if not isinstance(prior, Normal):
        return None, None, None
    s, mean = prior.sigma, prior.mean if isinstance(prior.mean, Tensor) else None
    if mean is None and prior.mean != 0:
        mean = torch.full_like(like, float(prior.mean))
    if isinstance(s, Tensor) and not s.is_cpu:
        s = s.to(like).reshape(())
        return mean, s**-2, s.log() - 0.5
    s = max(float(s), LEAST_SIGMA)
    return mean, s**-2, math.log(s) - 0.5


def _differentiable(mu: Tensor, rho: Tensor, prior: Any, grads: tuple[Any, ...]) -> tuple[Tensor | None, ...]:
    """The gradients of mu and rho through the plain formulas, which autograd can differentiate again."""
    sigma = sigma_from_rho(rho)
    outputs = (mu.view_as(mu), sigma.square(), None if prior is None else prior.kl(mu, sigma))
    pairs = zip(outputs, grads, strict=True)
    used = [(out, g) for out, g in pairs if out is not None and g is not None and out.requires_grad]
    wanted = [t for t in (mu, rho) if t.requires_grad]
    outs, slopes = zip(*used, strict=True)
    found = iter(torch.autograd.grad(outs, wanted, slopes, create_graph=True, allow_unused=True))
    return (*(next(found) if t.requires_grad else None for t in (mu, rho)), None)


def _slope(variance: Tensor, slope: Tensor) -> Tensor:
    """The slope eps / (2 sqrt(v)) that a draw has kept, as a function of v."""
    deviation = variance.clamp_min(LEAST_SIGMA**2).sqrt()
    return slope * deviation.detach() / deviation


def draw_weight(moments: Moments) -> Tensor:
    """One draw of a weight with noise from torch's default generator, differentiable in mu and rho.

    Whoever uses it gives it a gradient that nobody else holds, as products do: the KL is added to that in place.
    """
    return _Draw.apply(moments.mean, moments.variance, moments)


class _Draw(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *args: Any) -> Tensor:
        mean, variance, moments = args
        weight, slope = torch.empty_like(variance), standard_normal_like(variance)
        for v, m, w, r in blocks(variance, mean, weight, slope):
            deviation = torch.sqrt(v, out=scratch(v)[0])
            torch.addcmul(m, deviation, r, out=w)
            r.div_(deviation.clamp_min_(LEAST_SIGMA)).mul_(0.5)
        ctx.moments = moments  # the KL of this step finds them for as long as they are held
        ctx.save_for_backward(variance, slope)
        return weight

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        (grad,), (variance, slope) = grads, ctx.saved_tensors
        if torch.is_grad_enabled():
            return grad, grad * _slope(variance, slope), None
        ctx.moments = None
        # What is only added, as a bias to one example, gets the gradient of the sum, which others hold too.
        return grad if grad.dim() > 1 else grad.clone(), grad * slope, None


def local_reparameterization(
    input: Tensor,
    weight: Moments,
    bias: Moments | Tensor | None,
    operation: Operation,
    dtype: torch.dtype = torch.float32,
) -> Tensor:
    """One draw of the pre-activations, as ``add_noise(op(x, mu), op(x^2, sigma^2))``.

    A ``bias`` without a posterior is a plain tensor. With ``dtype`` bfloat16 the variance of float32 inputs
    is computed in that, and deviations are wrong by 0.1 to 0.6 %; means and their gradients stay precise.
    """
    b_mean, b_var = (bias.mean, bias.variance) if isinstance(bias, Moments) else (bias, None)
    dtype = dtype if input.dtype is torch.float32 else input.dtype
    return _Local.apply(input, weight.mean, weight.variance, b_mean, b_var, operation, (weight, bias), dtype)


class _Local(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *args: Any) -> Tensor:
        input, w_mean, w_var, b_mean, b_var, operation, moments, dtype = args
        output = operation.forward(input, w_mean, b_mean)
        low = None if b_var is None else b_var.to(dtype)
        deviation = operation.forward(input.square().to(dtype), w_var.to(dtype), low).to(output.dtype).sqrt_()
        noise = standard_normal_like(output)
        # A view (a product over three and more axes is one) could not be changed in place by the user any more.
        output = torch.addcmul(output, noise, deviation) if is_view(output) else output.addcmul_(noise, deviation)
        slope = noise.div_(deviation.clamp_min_(LEAST_SIGMA)).mul_(0.5)
        ctx.operation, ctx.variance_dtype = operation, dtype
        ctx.moments = moments  # the KL of this step finds them for as long as they are held
        ctx.save_for_backward(input, w_mean, w_var, b_var, slope)
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        (grad,), (input, w_mean, w_var, b_var, slope) = grads, ctx.saved_tensors
        needs, operation, low = ctx.needs_input_grad, ctx.operation, ctx.variance_dtype
        if torch.is_grad_enabled():
            slope = _slope(operation.forward(input.square(), w_var, b_var), slope)
        else:
            ctx.moments = None
        g_input, g_mean, g_bias = operation.backward(grad, input, w_mean, (needs[0], needs[1], needs[3]))
        grad, square = grad * slope, input.square()
        if low is grad.dtype:
            g_square, g_var, g_b_var = operation.backward(grad, square, w_var, (needs[0], needs[2], needs[4]))
        else:
            precise = operation.precise_weight_gradient
            wanted = (needs[0], needs[2] and not precise, False)
            g_square, g_var, _ = operation.backward(grad.to(low), square.to(low), w_var.to(low), wanted)
            _, high, g_b_var = operation.backward(grad, square, w_var, (False, needs[2] and precise, needs[4]))
            g_var = high if g_var is None else g_var.to(grad.dtype)
        if g_square is not None:
            g_input = g_input.addcmul_(g_square.to(grad.dtype), input, value=2.0)
        return g_input, g_mean, g_var, g_bias, g_b_var, None, None, None
