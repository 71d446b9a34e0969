r"""Local reparameterization and the normal KL by hand-written gradients, for float32 on the CPU in eager mode.

Both compute what :mod:`bensemble.gaussian` says in plain operations; what differs is the work around the two matrix
products. Autograd would keep x^2, sigma, sigma^2, the standard deviation and the noise; here only x, sigma^2 and
r = eps / (2 sd) are kept, because with v the variance of the pre-activation

.. math:: y = m + \epsilon\sqrt{v} \qquad \frac{\partial y}{\partial v} = \frac{\epsilon}{2\sqrt v} = r

and everything else follows from those three. Passes over the weights run in blocks that stay in the processor's
cache, so softplus, square, log and the sums read the weights once. sigma^2 is shared between the forward and the KL.

Wherever these do not apply (other devices and dtypes, torch.compile, vmap, masks), the plain formulas run; under
double backward the plain formula is differentiated instead.
"""

from __future__ import annotations

import math
import weakref
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

from .gaussian import RHO_MIN, kl_normal, sigma_from_rho, standard_normal_like, tracing

__all__ = ["ConvolutionOp", "LinearOp", "Operation", "applies_to", "local_reparameterization", "normal_kl"]

_BLOCK = 1 << 17  # elements; half a megabyte of float32 stays in the second-level cache
_LEAST_DEVIATION = 1e-18
_EXP_OVERFLOWS = 80.0


class Operation(Protocol):
    """An operation that is linear in its input and in its weight, with its gradients."""

    def forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Apply weight and bias."""
        ...

    def backward(
        self, grad: Tensor, input: Tensor, weight: Tensor, needs: tuple[bool, bool, bool]
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Gradients with respect to input, weight and bias, as far as they are needed."""
        ...


@dataclass(frozen=True)
class LinearOp:
    """``input @ weight.T + bias`` over the last axis."""

    def forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Apply weight and bias."""
        return F.linear(input, weight, bias)

    def backward(
        self, grad: Tensor, input: Tensor, weight: Tensor, needs: tuple[bool, bool, bool]
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Gradients with respect to input, weight and bias, as far as they are needed."""
        rows = grad.reshape(-1, grad.shape[-1])
        return (
            (rows @ weight).view_as(input) if needs[0] else None,
            rows.t() @ input.reshape(-1, input.shape[-1]) if needs[1] else None,
            rows.sum(0) if needs[2] else None,
        )


@dataclass(frozen=True)
class ConvolutionOp:
    """A convolution of any dimension with zero padding, transposed or not, on batched input."""

    stride: tuple[int, ...]
    padding: tuple[int, ...]
    dilation: tuple[int, ...]
    groups: int
    transposed: bool = False
    output_padding: tuple[int, ...] = (0,)

    def forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Apply weight and bias."""
        return torch.convolution(
            input, weight, bias, self.stride, self.padding, self.dilation, self.transposed, self.output_padding,
            self.groups,
        )  # fmt: skip

    def backward(
        self, grad: Tensor, input: Tensor, weight: Tensor, needs: tuple[bool, bool, bool]
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Gradients with respect to input, weight and bias, as far as they are needed."""
        channels = grad.shape[1]
        return torch.ops.aten.convolution_backward(
            grad, input, weight, [channels], self.stride, self.padding, self.dilation, self.transposed,
            self.output_padding, self.groups, needs,
        )  # fmt: skip


def applies_to(*tensors: Tensor | None) -> bool:
    """Whether the kernels can run: dense float32 tensors on the CPU, seen by nobody but eager autograd."""
    if tracing() or torch.is_autocast_enabled("cpu") or not torch.is_grad_enabled():
        return False
    return all(
        t is None or (t.dtype is torch.float32 and t.device.type == "cpu" and type(t) in (Tensor, torch.nn.Parameter))
        for t in tensors
    )


def local_reparameterization(
    input: Tensor, w_mu: Tensor, w_rho: Tensor, b_mu: Tensor | None, b_rho: Tensor | None, operation: Operation
) -> Tensor:
    """One draw of the pre-activations, as ``add_noise(op(x, mu), op(x^2, sigma^2))``.

    Args:
        input: What the layer sees.
        w_mu: Weight means.
        w_rho: softplus^-1 of the weight sigmas.
        b_mu: Bias means or None.
        b_rho: The same for biases; None for a bias without a posterior.
        operation: How weight and bias are applied.
    """
    return _LocalReparameterization.apply(
        input, w_mu, _dense(w_rho), b_mu, None if b_rho is None else _dense(b_rho), operation
    )


def normal_kl(mu: Tensor, rho: Tensor, prior_mean: Tensor | float, prior_sigma: float) -> Tensor:
    """KL(N(mu, softplus(rho)^2) || N(prior_mean, prior_sigma^2)) in nats, summed; see ``gaussian.kl_normal``."""
    return _NormalKL.apply(mu, _dense(rho), prior_mean, prior_sigma)


def _dense(rho: Tensor) -> Tensor:
    """The tensor where its elements fill one stretch of memory; a copy of slices and expanded ones."""
    order = sorted(range(rho.dim()), key=rho.stride, reverse=True)
    return rho if rho.is_contiguous() or rho.permute(order).is_contiguous() else rho.contiguous()


# -- sigma^2, once for each version of rho

_variances: weakref.WeakValueDictionary[tuple[Any, ...], Tensor] = weakref.WeakValueDictionary()


def _variance(rho: Tensor) -> Tensor:
    """softplus(rho)^2, shared between the forward and the KL of one step; it lives as long as one of them needs it."""
    # Writes through rho.data do not count as a new version, so its place and two sums over it belong to the key.
    values = rho.detach()
    key = (id(rho), values.data_ptr(), float(values.sum()), float(torch.linalg.vector_norm(values)))
    found = _variances.get(key)
    if found is not None and found.shape == rho.shape:
        return found
    least, most = (float(end) for end in values.aminmax()) if rho.numel() else (0.0, 0.0)
    if not (least >= RHO_MIN and most < _EXP_OVERFLOWS):
        variance = sigma_from_rho(rho).square()
    else:
        variance = torch.empty_like(rho)
        for part, out in _blocks(rho, variance):
            torch.exp(part, out=out)
            out.log1p_().square_()
    _variances[key] = variance
    return variance


def _blocks(*tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Flat blocks of equally laid out dense tensors, small enough for the cache."""
    flat = [t.as_strided((t.numel(),), (1,)) for t in tensors]
    yield from zip(*(t.split(_BLOCK) for t in flat), strict=True)


def _like(tensor: Tensor, layout: Tensor) -> Tensor:
    """The tensor in the memory layout of another."""
    return tensor if tensor.stride() == layout.stride() else torch.empty_like(layout).copy_(tensor)


def _to_rho_(grad: Tensor, rho: Tensor, variance: Tensor) -> Tensor:
    """dL/drho from dL/dsigma^2, in place: times 2 sigma sigmoid(rho)."""
    grad = _like(grad, rho)
    scratch = torch.empty(min(_BLOCK, rho.numel()))
    for g, r, v in _blocks(grad, rho, variance):
        s = scratch[: g.numel()]
        g.mul_(torch.sqrt(v, out=s)).mul_(torch.sigmoid(r, out=s)).mul_(2.0)
    return grad


class _LocalReparameterization(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *args: Any) -> Tensor:
        input, w_mu, w_rho, b_mu, b_rho, operation = args
        w_var = _variance(w_rho)
        b_var = None if b_rho is None else _variance(b_rho)
        output = operation.forward(input, w_mu, b_mu)
        deviation = _like(operation.forward(input.square(), w_var, b_var), output).sqrt_()
        noise = standard_normal_like(output)
        # A view (a product over three and more axes is one) could not be changed in place by the user any more.
        output = torch.addcmul(output, noise, deviation) if output._is_view() else output.addcmul_(noise, deviation)
        noise.div_(deviation.clamp_min_(_LEAST_DEVIATION)).mul_(0.5)
        ctx.operation = operation
        ctx.save_for_backward(input, w_mu, w_rho, b_mu, b_rho, w_var, b_var, noise)
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        input, w_mu, w_rho, b_mu, b_rho, w_var, b_var, slope = ctx.saved_tensors
        needs = ctx.needs_input_grad
        if torch.is_grad_enabled():
            return _differentiable_backward(ctx, grad)
        operation: Operation = ctx.operation
        g_input, g_mu, g_bias = operation.backward(
            grad, input, w_mu, (needs[0], needs[1], b_mu is not None and needs[3])
        )
        slope = grad * slope
        wanted = (needs[0], needs[2], b_rho is not None and needs[4])
        g_square, g_var, g_b_var = operation.backward(slope, input.square(), w_var, wanted)
        del slope
        if g_input is not None and g_square is not None:
            g_input = _like(g_input, g_square).addcmul_(g_square, input, value=2.0)
        return (
            g_input,
            g_mu,
            _to_rho_(g_var, w_rho, w_var) if g_var is not None else None,
            g_bias,
            _to_rho_(g_b_var, b_rho, b_var) if g_b_var is not None and b_var is not None else None,
            None,
        )


def _differentiable_backward(ctx: Any, grad: Tensor) -> tuple[Tensor | None, ...]:
    """The same gradients through the plain formula, for double backward."""
    input, w_mu, w_rho, b_mu, b_rho, w_var, b_var, slope = ctx.saved_tensors
    operation: Operation = ctx.operation
    square = input.square()
    deviation = operation.forward(square.detach(), w_var, b_var).sqrt().clamp_min(_LEAST_DEVIATION)
    noise = 2.0 * slope * deviation
    variance = operation.forward(
        square, sigma_from_rho(w_rho).square(), None if b_rho is None else sigma_from_rho(b_rho).square()
    )
    output = operation.forward(input, w_mu, b_mu) + variance.clamp_min(torch.finfo(torch.float32).tiny).sqrt() * noise
    inputs = [input, w_mu, w_rho, b_mu, b_rho]
    wanted = [t for t, need in zip(inputs, ctx.needs_input_grad, strict=False) if need and t is not None]
    found = iter(torch.autograd.grad(output, wanted, grad, create_graph=True))
    results = (
        next(found) if need and t is not None else None for t, need in zip(inputs, ctx.needs_input_grad, strict=False)
    )
    return (*results, None)


class _NormalKL(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, mu: Tensor, rho: Tensor, prior_mean: Tensor | float, prior_sigma: float) -> Tensor:
        variance = _variance(rho)
        logs, scratch = [], torch.empty(min(_BLOCK, rho.numel()))
        for (v,) in _blocks(variance):
            logs.append(torch.log(v, out=scratch[: v.numel()]).sum())
        distance = mu - prior_mean if isinstance(prior_mean, Tensor) or prior_mean else mu
        count, squares = mu.numel(), torch.linalg.vector_norm(distance).double().square()
        kl = (variance.sum().double() + squares) / (2 * prior_sigma**2) - 0.5 * torch.stack(logs).double().sum()
        ctx.prior = (prior_mean, prior_sigma)
        ctx.save_for_backward(mu, rho, variance)
        return (kl + count * (math.log(prior_sigma) - 0.5)).float()

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        (grad,) = grads
        mu, rho, variance = ctx.saved_tensors
        prior_mean, prior_sigma = ctx.prior
        if torch.is_grad_enabled():
            kl = kl_normal(mu, sigma_from_rho(rho), prior_mean, prior_sigma)
            wanted = [t for t, need in zip((mu, rho), ctx.needs_input_grad, strict=False) if need]
            found = iter(torch.autograd.grad(kl, wanted, grad, create_graph=True))
            return (*(next(found) if need else None for need in ctx.needs_input_grad[:2]), None, None)
        scale = float(grad)
        g_mu = (mu - prior_mean if isinstance(prior_mean, Tensor) or prior_mean else mu) * (scale / prior_sigma**2)
        g_rho = torch.empty_like(rho)
        scratch = torch.empty(min(_BLOCK, rho.numel()))
        for out, r, v in _blocks(g_rho, rho, variance):
            s = torch.sqrt(v, out=scratch[: v.numel()])
            torch.mul(s, scale / prior_sigma**2, out=out)
            out.sub_(s.reciprocal_(), alpha=scale).mul_(torch.sigmoid(r, out=s))
        return g_mu, g_rho, None, None
