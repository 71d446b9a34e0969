"""Operations that are linear in their input and in their weight, each with its gradients."""

from __future__ import annotations

import math
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["ConvolutionOp", "LinearOp", "Operation"]


class LinearOp:
    """``input @ weight.T + bias`` over the last axis."""

    precise_weight_gradient = False  # whether it stays in float32 where the rest is in bfloat16

    def forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Apply weight and bias."""
        return F.linear(input, weight, bias)

    def backward(self, grad: Tensor, input: Tensor, weight: Tensor, needs: tuple[bool, ...]) -> tuple[Any, ...]:
        """Gradients with respect to input, weight and bias, as far as they are needed."""
        count = math.prod(input.shape[:-1])  # -1 says nothing where an axis is empty
        rows = grad.reshape(count, grad.shape[-1])
        g_input = (rows @ weight).view_as(input) if needs[0] else None
        g_weight = rows.t() @ input.reshape(count, input.shape[-1]) if needs[1] else None
        return g_input, g_weight, rows.sum(0) if needs[2] else None


class ConvolutionOp:
    """A convolution of batched input with zero padding, transposed or not: the arguments of ``torch.convolution``."""

    precise_weight_gradient = True  # in bfloat16 oneDNN's takes ten times as long on more than one thread

    def __init__(
        self,
        stride: Any,
        padding: Any,
        dilation: Any,
        groups: int,
        transposed: bool = False,
        output_padding: Any = (0,),
    ) -> None:
        self._options = (stride, padding, dilation, transposed, output_padding, groups)

    def forward(self, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        """Apply weight and bias."""
        return torch.convolution(input, weight, bias, *self._options)

    def backward(self, grad: Tensor, input: Tensor, weight: Tensor, needs: tuple[bool, ...]) -> tuple[Any, ...]:
        """Gradients with respect to input, weight and bias, as far as they are needed."""
        options = ([grad.shape[1]], *self._options, needs)
        return torch.ops.aten.convolution_backward(grad, input, weight, *options)


Operation = LinearOp | ConvolutionOp
