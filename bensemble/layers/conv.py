"""The Bayesian twins of ``torch.nn.Conv1d``, ``Conv2d`` and ``Conv3d``."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from ..operations import ConvolutionOp, Operation
from ..torch_internals import convolve
from .linear_in_weights import LinearOpLayer
from .registry import register

__all__ = ["BayesianConv1d", "BayesianConv2d", "BayesianConv3d"]


class _BayesianConv(LinearOpLayer):
    """The shared part of the convolutions: the published constructor and the operation."""

    def __init__(
        self,
        in_channels: int,
        out_channels: int,
        kernel_size: int | tuple[int, ...],
        stride: int | tuple[int, ...] = 1,
        padding: int | str | tuple[int, ...] = 0,
        dilation: int | tuple[int, ...] = 1,
        groups: int = 1,
        prior_sigma: float = 1.0,
        init_sigma: float = 0.1,
        *,
        bias: bool = True,
        padding_mode: str = "zeros",
        prior: Any = None,
        device: torch.device | str | None = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        twin = self.deterministic_class(
            in_channels, out_channels, kernel_size, stride, padding, dilation, groups,
            bias=bias, padding_mode=padding_mode, device=device, dtype=dtype,
        )  # fmt: skip
        self.adopt(twin, prior_sigma, init_sigma, prior)

    def linear_op(self, weight: Tensor, bias: Tensor | None, input: Tensor) -> Tensor:
        """The convolution, with the layer's stride, padding, padding mode, dilation and groups."""
        return convolve(self, input, weight, bias)

    @property
    def channel_axis(self) -> int | None:
        """The axis before the positions, where the kernel has one element."""
        module: Any = self
        pointwise = module.groups == 1 and set(module.kernel_size) == {1}
        return -1 - len(module.kernel_size) if pointwise else None

    def operation(self, input: Tensor) -> Operation | None:
        """The convolution of batched input with zero padding."""
        module: Any = self
        padding = [0] * len(module.kernel_size) if module.padding == "valid" else module.padding
        if input.dim() != module.w_mu.dim() or module.padding_mode != "zeros" or padding == "same":
            return None
        return ConvolutionOp(module.stride, tuple(padding), module.dilation, module.groups)


@register(nn.Conv1d)
class BayesianConv1d(_BayesianConv, nn.Conv1d):
    """A Conv1d whose weights (out, in / groups, *kernel) and biases (out,) have Gaussian posteriors.

    The arguments are those of :class:`BayesianConv2d`.

    Example:
        >>> layer = bensemble.BayesianConv1d(3, 8, kernel_size=5, padding="same")
    """


@register(nn.Conv2d)
class BayesianConv2d(_BayesianConv, nn.Conv2d):
    """A Conv2d whose weights (out, in / groups, *kernel) and biases (out,) have Gaussian posteriors.

    Args:
        in_channels: Number of input channels.
        out_channels: Number of output channels.
        kernel_size: Size of the kernel.
        stride: Stride.
        padding: Padding: numbers, ``"same"`` or ``"valid"``.
        dilation: Dilation.
        groups: Number of groups.
        prior_sigma: Standard deviation of the zero-mean normal prior.
        init_sigma: Initial standard deviation of every weight. Initial weight means are normal with variance
            2 / fan_in (He et al. 2015), initial bias means are 0.
        bias: Whether the layer has a bias.
        padding_mode: As in the torch.nn convolution.
        prior: A prior for weights and biases, instead of ``prior_sigma``.
        device: As in the torch.nn convolution.
        dtype: As in the torch.nn convolution; rho is float32 unless this is float64.

    Example:
        >>> bensemble.BayesianConv2d(1, 8, kernel_size=3)(x).shape
        torch.Size([2, 8, 6, 6])
    """


@register(nn.Conv3d)
class BayesianConv3d(_BayesianConv, nn.Conv3d):
    """A Conv3d whose weights (out, in / groups, *kernel) and biases (out,) have Gaussian posteriors.

    The arguments are those of :class:`BayesianConv2d`.

    Example:
        >>> layer = bensemble.BayesianConv3d(3, 8, kernel_size=3, stride=2)
    """
