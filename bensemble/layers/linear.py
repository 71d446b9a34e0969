"""The Bayesian twin of ``torch.nn.Linear``."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InvalidValueError
from ..operations import LinearOp, Operation
from .linear_in_weights import LinearOpLayer
from .registry import register

__all__ = ["BayesianLinear"]


@register(nn.Linear)
class BayesianLinear(LinearOpLayer, nn.Linear):
    """A Linear layer whose weights and biases have independent Gaussian posteriors.

    Parameters are ``w_mu``, ``w_rho`` of shape (out_features, in_features) and ``b_mu``, ``b_rho`` of shape
    (out_features,). What a forward does depends on the state of the layer; see :mod:`bensemble.layers.base`.

    Args:
        in_features: Size of the last input axis.
        out_features: Size of the last output axis.
        prior_sigma: Standard deviation of the zero-mean normal prior.
        init_sigma: Initial standard deviation of every weight.
        weight_init: Initial weight means: ``"kaiming"`` is normal with variance 2 / in_features (He et al. 2015),
            ``"xavier"`` is normal with variance 2 / (in_features + out_features) (Glorot & Bengio 2010), ``"normal"``
            is the default of ``torch.nn.Linear``, uniform within 1 / sqrt(in_features). Initial bias means are 0.
        bias: Whether the layer has a bias.
        prior: A prior for weights and biases, instead of ``prior_sigma``.
        device: As in ``torch.nn.Linear``.
        dtype: As in ``torch.nn.Linear``; rho is float32 unless this is float64.

    Raises:
        InvalidValueError: A sigma is not positive and finite, or ``weight_init`` is unknown.

    Example:
        >>> layer = bensemble.BayesianLinear(64, 10)
        >>> loss = F.cross_entropy(layer(x.flatten(1)), y) + layer.kl_divergence() / 1000
    """

    weight_init: str = "kaiming"

    def __init__(
        self,
        in_features: int,
        out_features: int,
        prior_sigma: float = 1.0,
        init_sigma: float = 0.1,
        weight_init: str = "kaiming",
        *,
        bias: bool = True,
        prior: Any = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        if weight_init not in ("kaiming", "xavier", "normal"):
            raise InvalidValueError(
                f"BayesianLinear: weight_init must be 'kaiming', 'xavier' or 'normal', got {weight_init!r}."
            )
        twin: Any = nn.Linear(in_features, out_features, bias=bias, device=device, dtype=dtype)
        twin.weight_init = weight_init
        self.adopt(twin, prior_sigma, init_sigma, prior)

    def linear_op(self, weight: Tensor, bias: Tensor | None, input: Tensor) -> Tensor:
        """``input @ weight.T + bias``."""
        return F.linear(input, weight, bias)

    @property
    def channel_axis(self) -> int:
        """The last axis."""
        return -1

    def operation(self, input: Tensor) -> Operation | None:
        """A matrix product over the last axis."""
        return LinearOp()

    def initialise_means(self) -> None:
        """Initialise weight means by ``weight_init`` and bias means with 0."""
        super().initialise_means()
        if self.weight_init == "xavier":
            nn.init.xavier_normal_(self.w_mu)
        elif self.weight_init == "normal":
            nn.init.kaiming_uniform_(self.w_mu, a=5**0.5)
