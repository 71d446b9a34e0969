"""Operations that are linear in their input and in their weight, each with its gradients."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import ClassVar, Protocol

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["ConvolutionOp", "LinearOp", "Operation"]


class Operation(Protocol):
    """An operation that is linear in its input and in its weight, with its gradients."""

    @property
    def has_precise_weight_gradient(self) -> bool:
        """Whether the gradient of the weight stays in float32 where the rest is in half precision."""
        ...

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
        channels = grad.shape[1]
        return torch.ops.aten.convolution_backward(
            grad, input, weight, [channels], self.stride, self.padding, self.dilation, self.transposed,
            self.output_padding, self.groups, needs,
        )  # fmt: skip
