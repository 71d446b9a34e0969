r"""A fixed random projection of wide layers: :math:`R x` with independent signs.

Up to a factor it keeps squared distances on average (Achlioptas 2003, "Database-friendly random projections"). The
signs come from integers alone, so that a seed gives the same matrix on every machine and in every version of torch.
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["random_signs"]


def _signed(bits: int) -> int:
    """The int64 with these 64 bits."""
    return bits - (1 << 64) if bits >> 63 else bits


_GOLDEN = _signed(0x9E3779B97F4A7C15)
_FIRST = _signed(0xBF58476D1CE4E5B9)
_SECOND = _signed(0x94D049BB133111EB)


def random_signs(seed: int, number: int, width: int, size: int) -> Tensor:
    """The projection of one layer.

    Args:
        seed: Seed of all projections of a novelty, from 0 to 2^62.
        number: Number of the layer.
        width: Features of the layer.
        size: Dimensions after the projection, k.

    Returns:
        int8 tensor of shape (width, size) whose entries are +1 and -1.
    """
    key = _mixed(torch.tensor([seed]) + _GOLDEN * torch.tensor([number + 1]))
    bits = _mixed(key + _GOLDEN * torch.arange(1, width * size + 1))
    return (1 - 2 * (bits < 0).to(torch.int8)).view(width, size)


def _mixed(z: Tensor) -> Tensor:
    """The finaliser of SplitMix64 (Steele, Lea & Flood 2014), in wrapping int64 arithmetic."""
    z = (z ^ _shifted(z, 30)) * _FIRST
    z = (z ^ _shifted(z, 27)) * _SECOND
    return z ^ _shifted(z, 31)


def _shifted(z: Tensor, places: int) -> Tensor:
    """The logical shift to the right; torch's own keeps the sign."""
    return (z >> places) & ((1 << (64 - places)) - 1)
