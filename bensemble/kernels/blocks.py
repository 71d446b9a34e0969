"""Passes over large tensors in blocks that stay in the processor's cache, so that memory is read once for all steps."""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

__all__ = ["BLOCK", "LEAST_DEVIATION", "blocks", "dense", "like", "scratches", "sum_of_logs"]

BLOCK = 1 << 17  # elements; smaller blocks cost more in calls than the cache gives back

#: What a standard deviation is at least where it divides; its square is still a normal float32.
LEAST_DEVIATION = 1e-18

_GROUP = 4  # logarithms are dear: one for the product of four
_WORTH_GROUPING = 1 << 10
_LEAST_NORMAL = torch.finfo(torch.float32).tiny


def blocks(*tensors: Tensor | None) -> Iterator[tuple[Any, ...]]:
    """Flat blocks of equally laid out dense tensors; None for those that are None."""
    flat = [None if t is None else t.as_strided((t.numel(),), (1,)) for t in tensors]
    numel = next(t.numel() for t in flat if t is not None)
    for start in range(0, numel, BLOCK):
        yield tuple(t if t is None or numel <= BLOCK else t[start : start + BLOCK] for t in flat)


def scratches(count: int, numel: int) -> list[Tensor]:
    """Tensors for the intermediate values of one block.

    Each thread keeps its own from call to call: the C library hands freed memory back to the kernel, and taking it
    again costs more than the passes themselves.
    """
    size = min(BLOCK, numel)
    kept: list[Tensor] = _kept.__dict__.setdefault("scratches", [])
    if len(kept) < count or kept[count - 1].numel() < size:
        # Whatever the defaults are at this moment: the tensors outlive it.
        kept[:] = (torch.empty(size, dtype=torch.float32, device="cpu") for _ in range(max(count, len(kept))))
    return kept[:count]


_kept = threading.local()


def dense(tensor: Tensor) -> Tensor:
    """The tensor where its elements fill one stretch of memory; a copy of slices and expanded ones."""
    if tensor.is_contiguous():
        return tensor
    order = sorted(range(tensor.dim()), key=tensor.stride, reverse=True)
    return tensor if tensor.permute(order).is_contiguous() else tensor.contiguous()


def like(tensor: Tensor, layout: Tensor) -> Tensor:
    """The tensor in the memory layout of another."""
    return tensor if tensor.stride() == layout.stride() else torch.empty_like(layout).copy_(tensor)


def sum_of_logs(values: Tensor, scratch: Tensor) -> float:
    """Sum of the logarithms of a flat block of positive numbers; not finite where products leave the normal range.

    Args:
        values: The block.
        scratch: Room for a quarter of it.
    """
    count = values.numel() // _GROUP
    if count < _WORTH_GROUPING:
        return float(values.log().sum())
    first, second, third, fourth = values[: _GROUP * count].view(_GROUP, count).unbind()
    products = torch.mul(first, second, out=scratch[:count]).mul_(third).mul_(fourth)
    if not float(products.min()) >= _LEAST_NORMAL:
        return math.nan
    total = float(products.log_().sum())
    return total if _GROUP * count == values.numel() else total + float(values[_GROUP * count :].log().sum())
