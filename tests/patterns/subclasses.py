"""Subclasses of layers that have a forward of their own."""

from __future__ import annotations

import math

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from .table import pattern


class StdConv2d(nn.Conv2d):
    """A convolution with standardised weights."""

    def forward(self, x: Tensor) -> Tensor:
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        weight = weight / (weight.flatten(1).std(1).view(-1, 1, 1, 1) + 1e-5)
        return F.conv2d(x, weight, self.bias, self.stride, self.padding, self.dilation, self.groups)


@pattern("weight standardisation: the weight is read, normalised, and handed to F.conv2d")
def standardised_conv():
    return nn.Sequential(StdConv2d(3, 4, 3), nn.ReLU(), StdConv2d(4, 2, 3)), (torch.randn(2, 3, 6, 6),)


class ScaledStdConv2d(nn.Conv2d):
    """Standardised through batch_norm of the weight, with a gain per channel (NFNet)."""

    def __init__(self, *args: int) -> None:
        super().__init__(*args)
        self.gain = nn.Parameter(torch.ones(self.out_channels, 1, 1, 1))

    def forward(self, x: Tensor) -> Tensor:
        flat = self.weight.reshape(1, self.out_channels, -1)
        weight = F.batch_norm(flat, None, None, weight=self.gain.view(-1), training=True, eps=1e-6)
        return F.conv2d(x, weight.reshape_as(self.weight), self.bias)


@pattern("the weight passes through batch_norm before it reaches the convolution")
def scaled_standardised_conv():
    return ScaledStdConv2d(3, 4, 3), (torch.randn(2, 3, 6, 6),)


class SamePadConv2d(nn.Conv2d):
    """TensorFlow's padding, computed from the input."""

    def forward(self, x: Tensor) -> Tensor:
        height, width = x.shape[-2:]
        x = F.pad(x, (0, (-width) % 2 + 1, 0, (-height) % 2 + 1))
        return F.conv2d(x, self.weight, self.bias, self.stride, 0, self.dilation, self.groups)


@pattern("padding that depends on the input")
def same_pad_conv():
    return SamePadConv2d(3, 4, 3, stride=2), (torch.randn(2, 3, 7, 7),)


class CosineClassifier(nn.Linear):
    """Cosine similarity to normalised class weights."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.normalize(x), F.normalize(self.weight))


@pattern("a subclass of Linear that normalises the weight and ignores the bias")
def cosine_classifier():
    return nn.Sequential(nn.Linear(6, 8), CosineClassifier(8, 4, bias=False)), (torch.randn(3, 6),)


class MaskedLinear(nn.Linear):
    """A Linear with a fixed mask (MADE)."""

    def __init__(self, n: int) -> None:
        super().__init__(n, n)
        self.register_buffer("mask", torch.ones(n, n).tril(-1))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * self.mask, self.bias)


@pattern("a buffer called mask beside a weight that gets buffers of its own")
def masked_linear():
    return nn.Sequential(MaskedLinear(6), nn.ReLU(), MaskedLinear(6)), (torch.randn(3, 6),)


class EqualisedLinear(nn.Linear):
    """Runtime weight scaling (StyleGAN)."""

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight * (1 / math.sqrt(self.in_features)), self.bias)


@pattern("the weight is scaled in every forward")
def equalised_linear():
    return EqualisedLinear(6, 4), (torch.randn(3, 6),)


class LoRALinear(nn.Linear):
    """A frozen Linear with a trainable low-rank update."""

    def __init__(self, n: int, rank: int = 2) -> None:
        super().__init__(n, n)
        self.weight.requires_grad_(False)
        self.lora_a = nn.Parameter(torch.randn(rank, n))
        self.lora_b = nn.Parameter(torch.randn(n, rank))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) + x @ self.lora_a.t() @ self.lora_b.t()


@pattern("further parameters on a Linear whose own weight is frozen", stays=("weight",))
def lora():
    return LoRALinear(6), (torch.randn(3, 6),)


class NoisyLinear(nn.Module):
    """Noisy networks for exploration: the user's own means and sigmas."""

    def __init__(self, n: int, m: int) -> None:
        super().__init__()
        self.weight_mu = nn.Parameter(torch.randn(m, n))
        self.weight_sigma = nn.Parameter(torch.full((m, n), 0.1) * torch.rand(m, n))
        self.register_buffer("weight_epsilon", torch.randn(m, n))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight_mu + self.weight_sigma * self.weight_epsilon)


@pattern("parameters that are called weight_mu and weight_sigma")
def noisy_linear():
    return NoisyLinear(6, 4), (torch.randn(3, 6),)


class OwnBayesian(nn.Module):
    """The user's own Bayes by backprop: pairs that look like ours, on a module that also has a plain weight."""

    def __init__(self, n: int, m: int) -> None:
        super().__init__()
        self.scale_mu = nn.Parameter(torch.randn(m))
        self.scale_rho = nn.Parameter(torch.randn(m))
        self.weight = nn.Parameter(torch.randn(m, n))

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(x, self.weight) * (self.scale_mu + F.softplus(self.scale_rho))


@pattern("parameters scale_mu and scale_rho of the user's own, which are no posterior of ours")
def own_bayesian():
    return OwnBayesian(6, 4), (torch.randn(3, 6),)


class Collision(nn.Module):
    """Names that a converter would like to use are taken."""

    def __init__(self, n: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.randn(n, n))
        self.weight_mu = nn.Parameter(torch.randn(n, n))
        self.weight_rho = nn.Parameter(torch.randn(n, n))
        self.register_buffer("weight_mask", torch.ones(n, n).tril())

    def forward(self, x: Tensor) -> Tensor:
        return F.linear(F.linear(F.linear(x, self.weight * self.weight_mask), self.weight_mu), self.weight_rho)


@pattern("weight, weight_mu, weight_rho and weight_mask all exist already")
def name_collision():
    return Collision(4), (torch.randn(3, 4),)


class TwoForwards(nn.Linear):
    """Chooses between its parent's forward and its own."""

    def forward(self, x: Tensor, transpose: bool = False) -> Tensor:
        return F.linear(x, self.weight.t()) if transpose else super().forward(x)


class UsesBoth(nn.Module):
    """Encodes and decodes with one layer."""

    def __init__(self) -> None:
        super().__init__()
        self.layer = TwoForwards(6, 4)

    def forward(self, x: Tensor) -> Tensor:
        return self.layer(self.layer(x), transpose=True)


@pattern("a further argument of forward decides how the weight is used")
def transposed_use():
    return UsesBoth(), (torch.randn(3, 6),)


class CausalConv1d(nn.Conv1d):
    """Pads on the left and calls its parent."""

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(F.pad(x, (self.dilation[0] * (self.kernel_size[0] - 1), 0)))


@pattern("a subclass whose forward calls that of its parent")
def causal_conv():
    return nn.Sequential(CausalConv1d(3, 4, 3, dilation=2), CausalConv1d(4, 2, 3)), (torch.randn(2, 3, 8),)


class FlippedConv(nn.Conv2d):
    """Overrides the hook that torch's own forward calls."""

    def _conv_forward(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
        return super()._conv_forward(x, weight.flip(-1), bias)


@pattern("overrides _conv_forward only")
def flipped_conv():
    return FlippedConv(3, 4, 3, padding=1, padding_mode="circular"), (torch.randn(2, 3, 6, 6),)


class WithNormAndTable(nn.LayerNorm):
    """A norm with a projection of its own."""

    def __init__(self, n: int) -> None:
        super().__init__(n)
        self.projection = nn.Parameter(torch.randn(n, n))

    def forward(self, x: Tensor) -> Tensor:
        return super().forward(x) @ self.projection


@pattern("a subclass of a norm that holds a projection as well")
def norm_with_projection():
    return WithNormAndTable(6), (torch.randn(3, 6),)


class ProjectedEmbedding(nn.Embedding):
    """An embedding with a factor of its own (ALBERT's factorised table)."""

    def __init__(self) -> None:
        super().__init__(9, 3)
        self.factor = nn.Parameter(torch.randn(3, 6))

    def forward(self, index: Tensor) -> Tensor:
        return super().forward(index) @ self.factor


@pattern("a subclass of Embedding that holds a projection as well", stays=("weight",))
def embedding_with_projection():
    return ProjectedEmbedding(), (torch.randint(0, 9, (2, 4)),)
