"""The Bayesian twins of ``torch.nn.ConvTranspose1d``, ``ConvTranspose2d`` and ``ConvTranspose3d``."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, ClassVar

import torch.nn.functional as F
from torch import Tensor, nn

from ..operations import ConvolutionOp, Operation
from ..torch_internals import output_padding
from .linear_in_weights import LinearOpLayer
from .registry import register

__all__ = ["BayesianConvTranspose1d", "BayesianConvTranspose2d", "BayesianConvTranspose3d"]


class _BayesianConvTranspose(LinearOpLayer):
    """The shared part of the transposed convolutions: the constructor and the operation.

    Args:
        args: The positional arguments of the torch.nn module.
        prior_sigma: Standard deviation of the zero-mean normal prior.
        init_sigma: Initial standard deviation of every weight.
        prior: A prior for weights and biases, instead of ``prior_sigma``.
        kwargs: The keyword arguments of the torch.nn module.
    """

    transposed_convolution: ClassVar[Callable[..., Tensor]]

    def __init__(
        self, *args: Any, prior_sigma: float = 1.0, init_sigma: float = 0.1, prior: Any = None, **kwargs: Any
    ) -> None:
        self.adopt(self.deterministic_class(*args, **kwargs), prior_sigma, init_sigma, prior)

    def linear_op(
        self, weight: Tensor, bias: Tensor | None, input: Tensor, output_size: list[int] | None = None
    ) -> Tensor:
        """The transposed convolution, with the layer's stride, padding, output padding, dilation and groups."""
        return type(self).transposed_convolution(
            input, weight, bias, self.stride, self.padding, self._padding_behind(input, output_size), self.groups,
            self.dilation,
        )  # fmt: skip

    def operation(self, input: Tensor, output_size: list[int] | None = None) -> Operation | None:
        """The transposed convolution of batched input."""
        module: Any = self
        if input.dim() != module.w_mu.dim():
            return None
        behind = tuple(self._padding_behind(input, output_size))
        return ConvolutionOp(module.stride, module.padding, module.dilation, module.groups, True, behind)

    def _padding_behind(self, input: Tensor, output_size: list[int] | None) -> list[int]:
        """The output padding that gives the requested output size."""
        return output_padding(self, input, output_size, self.w_mu.dim() - 2)

    def channel_rows(self, weight: Tensor) -> Tensor:
        """The weight (in, out / groups, *kernel) as one row per output channel."""
        groups: Any = self.groups
        return weight.unflatten(0, (groups, -1)).transpose(1, 2).flatten(0, 1).flatten(1)


@register(nn.ConvTranspose1d)
class BayesianConvTranspose1d(_BayesianConvTranspose, nn.ConvTranspose1d):
    """A ConvTranspose1d whose weights (in, out / groups, *kernel) and biases (out,) have Gaussian posteriors.

    Takes the arguments of ``torch.nn.ConvTranspose1d``, and by name ``prior_sigma``, ``init_sigma`` and ``prior``.

    Example:
        >>> layer = bensemble.BayesianConvTranspose1d(8, 3, kernel_size=4, stride=2)
    """

    transposed_convolution = staticmethod(F.conv_transpose1d)


@register(nn.ConvTranspose2d)
class BayesianConvTranspose2d(_BayesianConvTranspose, nn.ConvTranspose2d):
    """A ConvTranspose2d whose weights (in, out / groups, *kernel) and biases (out,) have Gaussian posteriors.

    Takes the arguments of ``torch.nn.ConvTranspose2d``, and by name ``prior_sigma``, ``init_sigma`` and ``prior``.

    Example:
        >>> layer = bensemble.BayesianConvTranspose2d(8, 3, kernel_size=4, stride=2, prior_sigma=0.5)
    """

    transposed_convolution = staticmethod(F.conv_transpose2d)


@register(nn.ConvTranspose3d)
class BayesianConvTranspose3d(_BayesianConvTranspose, nn.ConvTranspose3d):
    """A ConvTranspose3d whose weights (in, out / groups, *kernel) and biases (out,) have Gaussian posteriors.

    Takes the arguments of ``torch.nn.ConvTranspose3d``, and by name ``prior_sigma``, ``init_sigma`` and ``prior``.

    Example:
        >>> layer = bensemble.BayesianConvTranspose3d(8, 3, kernel_size=4, stride=2)
    """

    transposed_convolution = staticmethod(F.conv_transpose3d)
