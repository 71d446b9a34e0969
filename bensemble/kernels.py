r"""Local reparameterization, weight draws and the KL with gradients in closed form.

They compute what :mod:`bensemble.gaussian` and :mod:`bensemble.priors` say, and keep less for the way back. One pass
over a weight gives sigma^2 and the KL, and one pass back gives the gradients of both:

.. math:: \frac{dL}{d\rho} = \left(2\sigma^2\frac{dL}{d\sigma^2} + \frac{dL}{d KL}\,\frac{dKL}{d\log\sigma}\right)
    \frac{\mathrm{sigmoid}(\rho)}{\sigma}

A draw :math:`y = m + \epsilon\sqrt{v}`, of a weight or of a pre-activation, keeps its slope in the variance,
:math:`r = \epsilon / (2\sqrt{v})`. Where gradients are differentiated again, sigma^2 and r are computed once more from
what they depend on. Where :func:`applies_to` says no, the plain formulas run.
"""

from __future__ import annotations

import itertools
import math
import threading
import weakref
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Any, ClassVar

import torch
import torch.nn.functional as F
from torch import Tensor

from .gaussian import RHO_MIN, sigma_from_rho, standard_normal_like, tracing
from .priors import ARD, Normal

__all__ = [
    "ConvolutionOp",
    "LinearOp",
    "Moments",
    "Operation",
    "applies_to",
    "draw_weight",
    "fused_kl",
    "local_reparameterization",
    "shared_moments",
    "version",
]

_BLOCK = 1 << 17  # elements; on the CPU a block stays in the cache from the first step to the last
_LEAST_DEVIATION = 1e-18  # of what divides; its square is still a normal float32
_CLAMPED = RHO_MIN - 1e-5  # up to here rho has no gradient


def version(tensor: Tensor) -> int:
    """A number that every write in place changes; inference tensors do not count their writes."""
    return -1 if tensor.is_inference() else tensor._version


def applies_to(*tensors: Tensor | None) -> bool:
    """Whether the kernels can run: plain tensors of one device, all float32 or all float64, in eager autograd."""
    present = [t for t in tensors if t is not None]
    device, dtype = present[0].device, present[0].dtype
    if dtype not in (torch.float32, torch.float64) or tracing() or torch.is_inference_mode_enabled():
        return False
    if torch.amp.is_autocast_available(device.type) and torch.is_autocast_enabled(device.type):
        return False
    return all(t.dtype is dtype and t.device == device and type(t) in (Tensor, torch.nn.Parameter) for t in present)


# -- operations that are linear in their input and in their weight


@dataclass(frozen=True)
class LinearOp:
    """``input @ weight.T + bias`` over the last axis."""

    #: Whether the gradient of the weight stays precise where the rest is in bfloat16.
    has_precise_weight_gradient: ClassVar[bool] = False

    def forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Apply weight and bias."""
        return F.linear(input, weight, bias)

    def backward(
        self, grad: Tensor, input: Tensor, weight: Tensor, needs: tuple[bool, bool, bool]
    ) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
        """Gradients with respect to input, weight and bias, as far as they are needed."""
        count = math.prod(input.shape[:-1])  # -1 says nothing where an axis is empty
        rows = grad.reshape(count, grad.shape[-1])
        return (
            (rows @ weight).view_as(input) if needs[0] else None,
            rows.t() @ input.reshape(count, input.shape[-1]) if needs[1] else None,
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

    #: In bfloat16 oneDNN's takes ten times as long on more than one thread.
    has_precise_weight_gradient: ClassVar[bool] = True

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
        return torch.ops.aten.convolution_backward(
            grad, input, weight, [grad.shape[1]], self.stride, self.padding, self.dilation, self.transposed,
            self.output_padding, self.groups, needs,
        )  # fmt: skip


Operation = LinearOp | ConvolutionOp


# -- mu, sigma^2 and the KL of a weight


@dataclass(frozen=True, eq=False)
class Moments:
    """What one pass over a weight gives.

    Attributes:
        mean: mu, as an output of the pass.
        variance: sigma^2.
        kl: The KL to the prior in nats, summed; None where it was not asked for or only the plain formula knows it.
    """

    mean: Tensor
    variance: Tensor
    kl: Tensor | None


_shared: weakref.WeakValueDictionary[tuple[Any, ...], Moments] = weakref.WeakValueDictionary()


def shared_moments(mu: Tensor, rho: Tensor, prior: Any) -> Moments:
    """The moments of a weight; on the CPU shared for as long as somebody holds them and the weight does not change."""
    if rho.device.type != "cpu":  # to see whether the weight has changed, the device would have to be waited for
        return _moments(mu, rho, None)
    prior = _in_closed_form(prior, rho)
    key = _state(mu, rho, prior)
    found = _shared.get(key)
    if found is None:
        found = _shared[key] = _moments(mu, rho, prior)
    return found


def fused_kl(mu: Tensor, rho: Tensor, prior: Any) -> Tensor | None:
    """KL(N(mu, softplus(rho)^2) || prior) in nats, summed; None where the plain formula has to do."""
    prior = _in_closed_form(prior, rho)
    if prior is None:
        return None
    found = _shared.get(_state(mu, rho, prior)) if rho.device.type == "cpu" else None
    return _moments(mu, rho, prior).kl if found is None else found.kl


def _moments(mu: Tensor, rho: Tensor, prior: Normal | ARD | None) -> Moments:
    mean, variance, kl = _Moments.apply(mu, rho, prior)
    return Moments(
        mean if mu.requires_grad else mean.detach(), variance if rho.requires_grad else variance.detach(), kl
    )


def _in_closed_form(prior: Any, weight: Tensor) -> Normal | ARD | None:
    """The prior, if the gradients of its KL are known here."""
    if type(prior) is ARD:
        return prior
    if type(prior) is not Normal or not prior.is_constant:
        return None
    mean = prior.mean
    fits = not isinstance(mean, Tensor) or (mean.shape, mean.dtype, mean.device) == (
        weight.shape, weight.dtype, weight.device
    )  # fmt: skip
    return prior if fits else None


def _state(mu: Tensor, rho: Tensor, prior: Normal | ARD | None) -> tuple[Any, ...]:
    """Tells a weight on the CPU, with its prior, from every other and from every other state of itself."""
    tensors, sigma = [mu, rho], None
    if isinstance(prior, Normal):
        sigma = float(prior.sigma)
        tensors += [prior.mean] if isinstance(prior.mean, Tensor) else []
    # Writes through .data do not count as a new version, so a sum over each tensor belongs to the state.
    states = [(id(t), t.data_ptr(), version(t), float(t.detach().sum())) for t in tensors]
    return (threading.get_ident(), torch.is_grad_enabled(), type(prior), sigma, *states)


def _blocks(*tensors: Tensor | None) -> Iterable[tuple[Any, ...]]:
    """Pieces of tensors of one shape that stay in the processor's cache; on other devices all at once."""
    first = next(t for t in tensors if t is not None)
    if first.numel() <= _BLOCK or first.device.type != "cpu":
        return [tensors]
    rows = max(1, _BLOCK * len(first) // first.numel())
    return zip(*(itertools.repeat(None) if t is None else t.split(rows) for t in tensors), strict=False)


class _Moments(torch.autograd.Function):
    """(mu, rho) -> (mu, sigma^2, KL).

    It can run back more than once, as when the NLL and the KL are differentiated one by one: so it checks the versions
    of its inputs itself, gives sigma^2 up after the first time, and computes it again when need be.
    """

    @staticmethod
    def forward(ctx: Any, *args: Any) -> tuple[Tensor, Tensor, Tensor | None]:
        mu, rho, prior = args
        variance, parts = torch.empty_like(rho), []
        means, precision, offset = _constants(prior, rho)
        for m, r, v, center in _blocks(mu, rho, variance, means):
            sigma = r.clamp(RHO_MIN, 20.0).exp_().log1p_()
            torch.maximum(sigma, r, out=sigma)  # softplus is the identity where exp would overflow
            torch.mul(sigma, sigma, out=v)
            if isinstance(prior, ARD):
                parts.append(prior.kl(m, sigma))
            elif prior is not None:  # as kl_normal has it, with fewer temporary tensors
                squares = _distance(prior, center, m).square().sum() + v.sum()
                parts.append(0.5 * precision * squares - sigma.log_().sum() + m.numel() * offset)
        ctx.inputs, ctx.versions, ctx.prior = (mu, rho), (version(mu), version(rho)), prior
        ctx.variance = variance.detach()
        ctx.set_materialize_grads(False)
        return mu.view_as(mu), variance, torch.stack(parts).sum() if parts else None

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        (mu, rho), prior = ctx.inputs, ctx.prior
        if ctx.versions != (version(mu), version(rho)):
            raise RuntimeError("mu or rho of a Bayesian layer was changed in place between its forward and backward.")
        g_mean, g_variance, g_kl = grads
        if g_variance is None and g_kl is None:
            return g_mean, None, None
        means, precision, _ = _constants(prior, rho)
        variance, ctx.variance = ctx.variance, None
        if variance is None or torch.is_grad_enabled():
            variance = sigma_from_rho(rho).square()
        if torch.is_grad_enabled():
            g_mu, g_rho = _slopes(prior, means, precision, mu, rho, variance, g_variance, g_kl)
            return (g_mean if g_mu is None else g_mu if g_mean is None else g_mean + g_mu), g_rho, None
        # In place of the gradients that come in: nobody else holds them.
        g_mean = torch.zeros_like(mu) if g_mean is None and g_kl is not None else g_mean
        g_rho = torch.empty_like(rho) if g_variance is None else g_variance
        for m, r, v, center, gm, gv, out in _blocks(mu, rho, variance, means, g_mean, g_variance, g_rho):
            g_mu, slope = _slopes(prior, center, precision, m, r, v, gv, g_kl)
            out.copy_(slope)
            if g_mu is not None:
                gm.add_(g_mu)
        return g_mean, g_rho, None


def _constants(prior: Normal | ARD | None, like: Tensor) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Of a normal prior: its means where each weight has its own, 1 / s^2, and log s - 1/2."""
    if not isinstance(prior, Normal):
        return None, None, None
    scale = torch.as_tensor(prior.sigma, dtype=like.dtype, device=like.device).reshape(())
    return prior.mean if isinstance(prior.mean, Tensor) else None, scale.square().reciprocal(), scale.log() - 0.5


def _distance(prior: Normal, center: Tensor | None, mu: Tensor) -> Tensor:
    mean = prior.mean if center is None else center
    return mu if center is None and mean == 0 else mu - mean


def _slopes(
    prior: Normal | ARD | None,
    center: Tensor | None,
    precision: Tensor | None,
    mu: Tensor,
    rho: Tensor,
    variance: Tensor,
    g_variance: Tensor | None,
    g_kl: Tensor | None,
) -> tuple[Tensor | None, Tensor]:
    """What the KL adds to the gradient of mu, and the gradient of rho; they can be differentiated again."""
    g_mu, g_log_sigma = None, None
    if isinstance(prior, ARD) and g_kl is not None:
        square = mu.square()
        share = g_kl / (square + variance).clamp_min(_LEAST_DEVIATION**2)
        g_mu, g_log_sigma = share * mu, -share * square
    elif g_kl is not None:
        pull = g_kl * precision
        g_mu, g_log_sigma = pull * _distance(prior, center, mu), pull * variance - g_kl
    if g_variance is not None:
        of_variance = variance * g_variance
        g_log_sigma = 2.0 * of_variance if g_log_sigma is None else torch.add(g_log_sigma, of_variance, alpha=2.0)
    # sigmoid(rho) / sigma, where both are tiny and equal as well
    rate = torch.sigmoid(rho).clamp_min(_LEAST_DEVIATION) / variance.clamp_min(_LEAST_DEVIATION**2).sqrt()
    return g_mu, torch.ops.aten.threshold_backward(g_log_sigma * rate, rho, _CLAMPED)


# -- draws


def _slope_of_draw(variance: Tensor, slope: Tensor) -> Tensor:
    """The slope eps / (2 sqrt(v)) that a draw has kept, as a function of v."""
    deviation = variance.clamp_min(_LEAST_DEVIATION**2).sqrt()
    return slope * deviation.detach() / deviation


def draw_weight(moments: Moments) -> Tensor:
    """One draw of a weight with noise from torch's default generator, differentiable in mu and rho.

    Its gradient must belong to nobody else, as that of the weight of a product does: the KL is added to it in place.
    """
    return _Draw.apply(moments.mean, moments.variance, moments)


class _Draw(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *args: Any) -> Tensor:
        mean, variance, moments = args
        weight, slope = torch.empty_like(variance), torch.empty_like(variance)
        for m, v, w, r in _blocks(mean, variance, weight, slope):
            deviation, noise = v.sqrt(), standard_normal_like(v)
            torch.addcmul(m, deviation, noise, out=w)
            torch.div(noise, deviation.clamp_min_(_LEAST_DEVIATION).mul_(2.0), out=r)
        ctx.moments = moments  # the KL of this step finds them for as long as they are held
        ctx.save_for_backward(variance, slope)
        return weight

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        (grad,), (variance, slope) = grads, ctx.saved_tensors
        if torch.is_grad_enabled():
            return grad, grad * _slope_of_draw(variance, slope), None
        ctx.moments = None
        # What is only added, as a bias to one example, gets the gradient of the sum, which others hold too.
        return grad if grad.dim() > 1 else grad.clone(), grad * slope, None


def local_reparameterization(
    input: Tensor,
    weight: Moments,
    bias: Moments | Tensor | None,
    operation: Operation,
    variance_dtype: torch.dtype = torch.float32,
) -> Tensor:
    """One draw of the pre-activations, as ``add_noise(op(x, mu), op(x^2, sigma^2))``.

    Args:
        input: What the layer sees.
        weight: Moments of the weight.
        bias: Moments of the bias; a plain tensor for a bias without a posterior.
        operation: How weight and bias are applied.
        variance_dtype: In what the variance of a float32 input is computed, float32 or bfloat16. In bfloat16 the
            deviations are wrong by up to 0.6 %, by 0.1 % as a rule; means and their gradients stay in float32.
    """
    b_mean, b_var = (bias.mean, bias.variance) if isinstance(bias, Moments) else (bias, None)
    dtype = variance_dtype if input.dtype is torch.float32 else input.dtype
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
        output = torch.addcmul(output, noise, deviation) if output._is_view() else output.addcmul_(noise, deviation)
        slope = noise.div_(deviation.clamp_min_(_LEAST_DEVIATION)).mul_(0.5)
        ctx.operation, ctx.variance_dtype = operation, dtype
        ctx.moments = moments  # the KL of this step finds them for as long as they are held
        ctx.save_for_backward(input, w_mean, w_var, b_var, slope)
        return output

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> tuple[Tensor | None, ...]:
        (grad,), (input, w_mean, w_var, b_var, slope) = grads, ctx.saved_tensors
        needs, operation = ctx.needs_input_grad, ctx.operation
        if torch.is_grad_enabled():
            slope = _slope_of_draw(operation.forward(input.square(), w_var, b_var), slope)
        else:
            ctx.moments = None
        g_input, g_mean, g_bias = operation.backward(grad, input, w_mean, (needs[0], needs[1], needs[3]))
        g_square, g_var, g_b_var = _variance_backward(
            operation, grad * slope, input.square(), w_var, (needs[0], needs[2], needs[4]), ctx.variance_dtype
        )
        if g_input is not None and g_square is not None:
            g_input = g_input.addcmul_(g_square, input, value=2.0)
        return g_input, g_mean, g_var, g_bias, g_b_var, None, None, None


def _variance_backward(
    operation: Operation,
    grad: Tensor,
    square: Tensor,
    w_var: Tensor,
    needs: tuple[bool, bool, bool],
    dtype: torch.dtype,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """Gradients with respect to x^2, sigma^2 and the bias's sigma^2, in the dtype of x."""
    if dtype is grad.dtype:
        return operation.backward(grad, square, w_var, needs)
    precise = operation.has_precise_weight_gradient
    low_needs, high_needs = (needs[0], needs[1] and not precise, False), (False, needs[1] and precise, needs[2])
    g_square, g_var, _ = operation.backward(grad.to(dtype), square.to(dtype), w_var.to(dtype), low_needs)
    _, precise_g_var, g_b_var = operation.backward(grad, square, w_var, high_needs)
    g_var = precise_g_var if g_var is None else g_var.to(grad.dtype)
    return None if g_square is None else g_square.to(grad.dtype), g_var, g_b_var
