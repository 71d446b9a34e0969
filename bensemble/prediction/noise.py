r"""The noise of Gaussian logits: few draws, fixed, that count second moments exactly.

The draws are pairs of opposite sign. Their halves come in orthogonal blocks, one for each direction of the noise, whose
lengths are quantiles of the length of normal vectors. A block with its opposites is the spherical-radial rule of
Arasaratnam & Haykin 2009 ("Cubature Kalman Filters", section III): means over it are exact for polynomials of degree
three, so the mutual information is right to second order in the deviations, where as many independent draws have an
error of one part in ten to one in four.
"""

from __future__ import annotations

import math
from functools import lru_cache

import torch
from torch import Tensor

__all__ = ["FEW_PAIRS", "MANY_PAIRS", "fixed_noise"]

#: Pairs for means over the draws, at least; and for what looks at the draws themselves.
FEW_PAIRS, MANY_PAIRS = 8, 32


@lru_cache(maxsize=16)
def fixed_noise(channels: int, least: int = FEW_PAIRS) -> Tensor:
    """One half of each pair of draws, the same at every position and in every batch.

    Args:
        channels: Length of a draw.
        least: Number of pairs, rounded up to whole blocks of orthogonal ones; a block has at most ``MANY_PAIRS``.

    Returns:
        Numbers of mean square 1 in every channel, (pairs, channels).
    """
    rows = min(channels, MANY_PAIRS)
    generator, blocks = torch.Generator().manual_seed(0), -(-least // rows)
    normal = math.sqrt(2) * torch.erfinv(2 * (torch.arange(blocks, dtype=torch.float64) + 0.5) / blocks - 1)
    share = 2 / (9 * channels)  # Wilson & Hilferty 1931, "The Distribution of Chi-Square"
    lengths = (1 - share + normal * math.sqrt(share)) ** 1.5
    drawn = torch.randn(blocks, channels, rows, generator=generator, dtype=torch.float64)
    noise = (lengths[:, None, None] * torch.linalg.qr(drawn).Q.mT).flatten(0, 1)
    return (noise / noise.square().mean(0).sqrt()).float()
