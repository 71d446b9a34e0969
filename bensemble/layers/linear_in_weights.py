r"""Layers that are linear in their weights: one operation, three ways to use it.

Training draws the pre-activations instead of the weights. For ``y = op(x, w)`` linear in ``w`` with independent
Gaussian weights, ``y`` is Gaussian with

.. math:: E[y] = op(x, \mu) \qquad Var[y] = op(x^2, \sigma^2)

(local reparameterization; Kingma, Salimans & Welling 2015, "Variational Dropout and the Local Reparameterization
Trick", section 2.3). It is exact where a layer is called once per forward, on one vector per example. In convolutions
and sequences all positions share the noise of a weight, and local reparameterization draws it anew for each position.
Prediction therefore uses weight samples.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, ClassVar

import torch
from torch import Tensor, nn

from ..basis import Basis, mix
from ..checks import check_number
from ..errors import InvalidValueError
from ..gaussian import add_noise, precise, rho_from_sigma
from ..kernels import applies_to, draw_weight, local_reparameterization, shared_moments
from ..noise.stack import HeldSample, active_sample, mean_mode
from ..operations import Operation
from ..priors import make_prior
from ..torch_internals import buffers_of, parameters_of
from .base import BaseBayesianLayer
from .weights import weight_property

__all__ = ["LinearOpLayer", "check_estimator", "check_variance_dtype"]


class LinearOpLayer(BaseBayesianLayer):
    """Twin of a deterministic module that is linear in ``weight`` and ``bias``.

    Subclass it together with the torch.nn type, and say how weights are applied::

        @register(nn.Conv1d)
        class BayesianConv1d(LinearOpLayer, nn.Conv1d):
            def linear_op(self, weight, bias, input):
                return self._conv_forward(input, weight, bias)

    Attributes:
        is_last: Whether the output of this layer is the model's output, up to moves, resizing of positions and one
            constant factor. ``bayesify`` sets it where it can prove it; whoever builds a model by hand sets it too.
    """

    _stems: ClassVar[dict[str, str]] = {"weight": "w", "bias": "b"}
    weight = weight_property("weight")
    bias = weight_property("bias")
    w_mu: nn.Parameter
    b_mu: nn.Parameter | None
    #: How a training forward draws its noise: "local" per activation, or "weights" one draw per forward.
    estimator: str = "local"
    #: In what a training forward computes the variance of float32 pre-activations: float32 or bfloat16.
    variance_dtype: torch.dtype = torch.float32
    #: Whether the output of this layer is the model's, up to moves, resizing of positions and one constant factor.
    #: ``bayesify`` sets it where it can prove it; whoever builds a model by hand may set it too. ``predict`` then needs
    #: no weight samples.
    is_last: bool = False
    #: Standard deviation that a freshly built layer starts with; None for a converted one.
    init_sigma: float | None = None

    def __init_subclass__(cls, **kwargs: Any) -> None:
        super().__init_subclass__(**kwargs)
        if "linear_op" in vars(cls) and "operation" not in vars(cls):
            cls.operation = LinearOpLayer.operation  # type: ignore[method-assign]  # the parent's is another one

    def linear_op(self, weight: Tensor, bias: Tensor | None, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """Apply the given weight and bias to the input; the further arguments are those of ``forward``."""
        raise NotImplementedError(f"{type(self).__name__} must define linear_op(weight, bias, input)")

    def operation(self, input: Tensor, *args: Any, **kwargs: Any) -> Operation | None:
        """The operation with gradients of its own, for speed; None where only :meth:`linear_op` is right."""
        return None

    @property
    def channel_axis(self) -> int | None:
        """The axis of channels, counted from the end, of inputs and outputs between which one matrix stands.

        None where there is more than one matrix, as in a convolution with a kernel: its posterior cannot be rotated.
        """
        return None

    def preactivation_variance(self, input: Tensor) -> tuple[Tensor, Tensor | None]:
        r"""The exact variance of the pre-activations of each position, given independent elements of the weights.

        In a rotated basis :math:`y \sim N(M\phi, Q_g\,\mathrm{diag}(v)\,Q_g^T)` with
        :math:`v_j = \sum_i (Q_a^T\phi)_i^2 S_{ji}^2`.

        Returns:
            v in the shape of the output, float32 or float64, and :math:`Q_g`; None for the plain basis.
        """
        own, offset, basis = self.variances_in_basis()
        if basis is None:
            return self.variance_at(input, own, offset, None), None
        return self.variance_at(input, own, offset, basis.inner), basis.outer

    def variance_at(
        self,
        input: Tensor,
        own: Tensor,
        offset: Tensor | None,
        inner: Tensor | None,
        resized: Callable[[Tensor], Iterable[Tensor]] | None = None,
    ) -> Tensor:
        """The same v for variances that are given, as :meth:`variances_in_basis` has them.

        ``resized`` is what follows the layer, where that resizes the positions of each channel alone; it gives blocks
        of channels. It commutes with the layer, so v is that of the resized inputs.
        """
        input = precise(input)
        if inner is not None:
            assert self.channel_axis is not None
            input = mix(input, inner.t(), self.channel_axis)
        if resized is None:
            return self.linear_op(own, offset, input.square())
        done, found = 0, torch.zeros(())
        for block in resized(input):
            width = block.shape[self.channel_axis]  # type: ignore[index]
            part = self.linear_op(own[:, done : done + width], None if done else offset, block.square())
            done, found = done + width, found + part if done else part
        return found

    def variances_in_basis(self) -> tuple[Tensor, Tensor | None, Basis | None]:
        """The variances of weight and bias in their own basis, and the basis if it is rotated."""
        weight, bias = self._posterior("weight"), self._posterior("bias")
        assert weight is not None
        if weight.basis is None:
            return weight.variance(), bias.variance() if bias else None, None
        return weight.scale().square(), bias.scale().square() if bias else None, weight.basis

    def channel_rows(self, weight: Tensor) -> Tensor:
        """A tensor in the shape of the weight as one row per output channel."""
        return weight.flatten(1)

    def forward(self, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The operation by the state of the layer; see :mod:`bensemble.layers.base`."""
        held = active_sample(self)
        if held is None and self.training:
            if self.estimator == "local":
                return self._local_reparameterization(input, *args, **kwargs)
            # For our own operations, autograd hands the gradient of the weight to one node only, which may change it.
            known = self.operation(input, *args, **kwargs) is not None
            return self.linear_op(self._drawn("weight", known), self._drawn("bias", known), input, *args, **kwargs)  # type: ignore[arg-type]
        if held is None or held.is_mean:
            return self._evaluate(input, *args, **kwargs)
        weight, bias = self._held(held, "weight"), self._held(held, "bias")
        return self.linear_op(weight, bias, input, *args, **kwargs)  # type: ignore[arg-type]

    def _evaluate(self, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        """The operation with the means, read past the properties, which would look up the state again (4 us a read)."""
        parameters, buffers = parameters_of(self), buffers_of(self)
        mean, offset = parameters.get("w_mu"), parameters.get("b_mu")
        pruned = "w_mask" in buffers or "b_mask" in buffers
        if mean is None or pruned or type(input) is not Tensor or torch.compiler.is_compiling():
            return super().forward(input, *args, **kwargs)
        return self.linear_op(mean, parameters.get("bias") if offset is None else offset, input, *args, **kwargs)

    def _local_reparameterization(self, input: Tensor, *args: Any, **kwargs: Any) -> Tensor:
        weight, bias = self._posterior("weight"), self._posterior("bias")
        plain_bias = parameters_of(self).get("bias")
        if weight is None:
            return super().forward(input, *args, **kwargs)
        unmasked, rotated = weight.mask is None and (bias is None or bias.mask is None), weight.basis is not None
        if rotated and not unmasked:  # a mask acts on plain weights
            return self.linear_op(self._drawn("weight", False), self._drawn("bias", False), input, *args, **kwargs)  # type: ignore[arg-type]
        tensors: Any = (weight.mu, weight.rho, bias.mu if bias else plain_bias, bias.rho if bias else None)
        plain = unmasked and not rotated and applies_to(input, *tensors)
        operation = self.operation(input, *args, **kwargs) if plain else None
        if operation is not None:
            moments = shared_moments(tensors[0], tensors[1], weight.prior)
            offset = shared_moments(tensors[2], tensors[3], bias.prior) if bias else plain_bias
            return local_reparameterization(input, moments, offset, operation, self.variance_dtype)
        mean = self.linear_op(weight.mean(), bias.mean() if bias else plain_bias, input, *args, **kwargs)
        # Squares overflow and small variances vanish in half precision, so the variance is never computed in it.
        with _no_autocast(input.device.type):
            if rotated:
                variance, outer = self.preactivation_variance(input)
                noise = add_noise(torch.zeros_like(variance), variance)
                assert outer is not None
                assert self.channel_axis is not None
                return mean + mix(noise, outer, self.channel_axis).to(mean.dtype)
            variances = (weight.variance(), bias.variance() if bias else None, precise(input).square())
            low = (t if t is None or t.dtype != torch.float32 else t.to(self.variance_dtype) for t in variances)
            variance = precise(self.linear_op(*low, *args, **kwargs))  # type: ignore[arg-type]
        return add_noise(mean, variance)

    def _drawn(self, name: str, by_kernel: bool) -> Tensor | None:
        """A fresh weight draw for one forward, an ordinary differentiable tensor."""
        posterior = self._posterior(name)
        if posterior is None:
            return parameters_of(self).get(name)
        mu, rho = posterior.mu, posterior.rho
        plain = posterior.mask is None and posterior.basis is None
        if by_kernel and plain and applies_to(mu, rho) and mu.shape == rho.shape:
            return draw_weight(shared_moments(mu, rho, posterior.prior))
        return posterior.draw(posterior.draw_noise())

    def _held(self, held: HeldSample, name: str) -> Tensor | None:
        """The weight that the open sampling context holds."""
        posterior = self._posterior(name)
        return held.weight(posterior) if posterior else parameters_of(self).get(name)

    def adopt(self, module: nn.Module, prior_sigma: float, init_sigma: float, prior: Any = None) -> None:
        """Turn this half-built layer into the Bayesian twin of a freshly built deterministic module.

        Args:
            module: An instance of the deterministic type; its attributes and parameters are taken over.
            prior_sigma: Standard deviation of the default prior.
            init_sigma: Standard deviation that every weight starts with.
            prior: A prior, or the name of one, for every posterior of the layer instead of ``prior_sigma``.
        """
        verb = type(self).__name__
        nn.Module.__init__(self)
        self.prior_sigma = prior_sigma
        self.init_sigma = check_number(verb, "init_sigma", init_sigma, above=0)
        parameters = parameters_of(module)
        self.__dict__.update({key: value for key, value in vars(module).items() if value is not parameters})
        for name, stem in self._stems.items():
            mu = parameters.get(name)
            self.register_parameter(f"{stem}_mu", mu)
            rho = None if mu is None else nn.Parameter(torch.empty_like(precise(mu.detach())))
            self.register_parameter(f"{stem}_rho", rho)
        self._answer_original_names()
        self.reset_parameters()
        if prior is not None:
            for p in self.posteriors():
                self._set_prior(p.stem, make_prior(verb, prior, None, p.mu, torch.tensor(self.init_sigma)))

    def reset_parameters(self) -> None:
        """Initialise the means; a converted layer as its deterministic type does, a built one with its sigmas too."""
        with mean_mode(self), torch.no_grad():
            if self.init_sigma is None:
                super().reset_parameters()  # type: ignore[misc]
                return
            self.initialise_means()
        # Under `with torch.device("meta")` as well, this is a number.
        rho = float(rho_from_sigma(torch.tensor(self.init_sigma, dtype=torch.float64, device="cpu")))
        for posterior in self.posteriors():
            nn.init.constant_(posterior.rho, rho)

    def initialise_means(self) -> None:
        """Weight means of a freshly built layer: normal with variance 2 / fan_in (He et al. 2015); bias means 0."""
        nn.init.kaiming_normal_(self.w_mu, mode="fan_in", nonlinearity="relu")
        if self.b_mu is not None:
            nn.init.zeros_(self.b_mu)


def _no_autocast(device_type: str) -> AbstractContextManager[Any]:
    """Autocast switched off, on devices that know it (the meta device does not)."""
    # Dynamo of torch 2.10 cannot trace the question; it compiles for devices that know autocast.
    if torch.compiler.is_compiling() or torch.amp.is_autocast_available(device_type):
        return torch.autocast(device_type, enabled=False)
    return nullcontext()


def check_estimator(verb: str, estimator: str) -> str:
    """The estimator, or an error unless it is "local" or "weights"."""
    if estimator not in ("local", "weights"):
        raise InvalidValueError(
            f"{verb}: estimator must be 'local' (noise per activation) or 'weights' (one draw per forward), "
            f"got {estimator!r}."
        )
    return estimator


def check_variance_dtype(verb: str, dtype: torch.dtype) -> torch.dtype:
    """The dtype of the variance, or an error unless it is float32 or bfloat16."""
    if dtype not in (torch.float32, torch.bfloat16):
        raise InvalidValueError(
            f"{verb}: variance_dtype must be torch.float32 or torch.bfloat16, got {dtype!r}; squares overflow "
            "in float16."
        )
    return dtype
