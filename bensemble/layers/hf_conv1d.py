"""The Bayesian twin of Hugging Face's ``Conv1D``, a Linear with a transposed weight, as in GPT-2.

This module is imported only when a model with a ``Conv1D`` is converted, so transformers is optional.
"""

from __future__ import annotations

import torch
from torch import Tensor
from transformers.pytorch_utils import Conv1D

from .linear_in_weights import LinearOpLayer
from .registry import register

__all__ = ["BayesianHFConv1D"]


@register(Conv1D)
class BayesianHFConv1D(LinearOpLayer, Conv1D):
    """A Conv1D whose weight (in, out) and bias (out,) have Gaussian posteriors; made by ``bayesify``."""

    def linear_op(self, weight: Tensor, bias: Tensor | None, x: Tensor) -> Tensor:
        """``x @ weight + bias`` over the last axis."""
        flat = x.reshape(-1, x.shape[-1])
        out = flat @ weight if bias is None else torch.addmm(bias, flat, weight)
        return out.view(*x.shape[:-1], weight.shape[1])

    def channel_rows(self, weight: Tensor) -> Tensor:
        """The weight (in, out) as one row per output channel."""
        return weight.t()
