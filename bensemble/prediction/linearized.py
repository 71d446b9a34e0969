r"""Predictions of the network that is linear in its weights, :math:`f(x, \mu) + J(x)(w - \mu)`.

The curvature of :func:`bensemble.fit_posterior` is that of this network, so its weight samples fit the posterior better
than those of the network itself, above all in regression (Immer, Korzepa & Bauer 2021, "Improving Predictions of
Bayesian Neural Nets via Local Linearization"). The product with the Jacobian is one forward-mode derivative: a forward
in which every weight carries its step along.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import lru_cache

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.nn.attention import SDPBackend, sdpa_kernel

from ..errors import InvalidValueError, one_line
from ..models.state import calling_modules
from ..noise.stack import holding
from ..posterior import Posterior
from .weight_samples import HeldWeights

__all__ = ["linearized"]


class _WeightsWithSteps(HeldWeights):
    """The means, each with the step to the weight of a sample as its derivative."""

    def __init__(self, sample: HeldWeights) -> None:
        super().__init__(sample.layers, sample.weights)

    def weight(self, posterior: Posterior) -> Tensor:
        """The mean and its step; only inside a dual level."""
        weight = super().weight(posterior)
        mean = posterior.mean().detach().to(weight.dtype)
        return forward_ad.make_dual(mean, weight - mean)

    def read(self, posterior: Posterior) -> Tensor:
        """The same: what a wrapper computes later would lose the derivative."""
        return self.weight(posterior)


def linearized(sample: HeldWeights, forward: Callable[[], Tensor]) -> Tensor:
    """The output of ``forward``, linear in the weights, at one weight sample.

    Raises:
        InvalidValueError: An operation has no forward-mode derivative.
    """
    with _differentiable(), forward_ad.dual_level():
        try:
            with holding(_WeightsWithSteps(sample)):
                value, step = forward_ad.unpack_dual(forward())
        except RuntimeError as err:  # also NotImplementedError
            if "forward AD" not in str(err) and "forward mode AD" not in str(err):
                raise
            raise InvalidValueError(
                f"predict: linearize=True needs forward-mode derivatives of every operation, got {one_line(err)}; "
                "leave linearize out to sample the weights."
            ) from err
        return value if step is None else value + step


@contextmanager
def _differentiable() -> Iterator[None]:
    """Fused operations without forward-mode derivatives are switched off."""
    _load_formulas()
    mkldnn = torch.backends.mkldnn.enabled
    # Its context manager warns on machines without an Intel GPU.
    torch.backends.mkldnn.enabled = False  # type: ignore[assignment]
    try:
        with calling_modules(), sdpa_kernel(SDPBackend.MATH):
            yield
    finally:
        torch.backends.mkldnn.enabled = mkldnn


@lru_cache(maxsize=1)
def _load_formulas() -> None:
    """Torch compiles some derivatives at the first use, by a function that warns of itself."""
    with warnings.catch_warnings(), forward_ad.dual_level():
        warnings.simplefilter("ignore")
        forward_ad.make_dual(torch.zeros(1), torch.zeros(1))
