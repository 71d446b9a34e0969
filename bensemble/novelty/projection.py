"""A fixed random projection of wide features: each gets a sign, and all are summed in turns into few.

Up to noise it keeps inner products and squared distances (Weinberger et al. 2009, "Feature Hashing for Large Scale
Multitask Learning", with the places in order where theirs are hashed: the features of a layer have no order). It costs
a sign for each feature. The signs come from integers alone, so that a seed gives the same ones on every machine and in
every version of torch.
"""

from __future__ import annotations

import torch
import torch.nn.functional as F
from torch import Tensor

__all__ = ["folded", "random_signs"]


def folded(x: Tensor, signs: Tensor, size: int) -> Tensor:
    """Features times their signs, (..., w), summed over those whose places are a multiple of ``size`` apart.

    Returns:
        Tensor of shape (..., size).
    """
    signed = F.pad(x * signs.to(x.dtype), (0, -x.shape[-1] % size))
    return signed.unflatten(-1, (-1, size)).sum(-2)


def _signed(bits: int) -> int:
    """The int64 with these 64 bits."""
    return bits - (1 << 64) if bits >> 63 else bits


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_FIRST = _signed(0xBF58476D1CE4E5B9)
_SECOND = _signed(0x94D049BB133111EB)


def random_signs(seed: int, number: int, width: int) -> Tensor:
    """The signs of one layer.

    Args:
        seed: Seed of all signs of a novelty, from 0 to 2^62.
        number: Number of the layer; -1 for the features of all layers together.
        width: Features of the layer.

    Returns:
        int8 tensor of shape (width,) whose entries are +1 and -1.
    """
    key = _mixed(torch.tensor([seed]) + _GOLDEN * torch.tensor([number + 1]))
    bits = _mixed(key + _GOLDEN * torch.arange(1, width + 1))
    return 1 - 2 * (bits < 0).to(torch.int8)


def _mixed(z: Tensor) -> Tensor:
    """The finaliser of SplitMix64 (Steele, Lea & Flood 2014), in wrapping int64 arithmetic."""
    z = (z ^ _shifted(z, 30)) * _FIRST
    z = (z ^ _shifted(z, 27)) * _SECOND
    return z ^ _shifted(z, 31)


def _shifted(z: Tensor, places: int) -> Tensor:
    """The logical shift to the right; torch's own keeps the sign."""
    return (z >> places) & ((1 << (64 - places)) - 1)
