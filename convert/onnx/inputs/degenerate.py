"""Inputs at the edge of what a model is made for: a file can be right on typical inputs and give NaN on these."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence

import torch
from torch import Tensor

__all__ = ["degenerate_inputs"]


def degenerate_inputs(tensors: Sequence[Tensor]) -> Iterator[tuple[str, tuple[Tensor, ...]]]:
    """Inputs of the same shapes, each with words that say what they are; only those that differ from the given ones."""
    for words, change in CHANGES.items():
        changed = tuple(change(tensor) for tensor in tensors)
        if not all(torch.equal(new, old) for new, old in zip(changed, tensors, strict=True)):
            yield words, changed


def _floats(change: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    return lambda tensor: change(tensor) if tensor.is_floating_point() else tensor


def _large(tensor: Tensor) -> Tensor:
    return tensor * FACTOR if torch.finfo(tensor.dtype).max > 1e30 else tensor  # float16 ends at 65504


def _booleans(value: bool) -> Callable[[Tensor], Tensor]:
    return lambda tensor: torch.full_like(tensor, value) if tensor.dtype == torch.bool else tensor


def _first_masked(tensor: Tensor) -> Tensor:
    """A row of False, others as they are."""
    if tensor.dtype != torch.bool or tensor.ndim < 2:
        return tensor
    masked = tensor.clone()
    masked[:1] = False
    return masked


def _is_integer(tensor: Tensor) -> bool:
    return not (tensor.is_floating_point() or tensor.is_complex() or tensor.dtype == torch.bool)


def _integers(tensor: Tensor) -> Tensor:
    return torch.zeros_like(tensor) if _is_integer(tensor) else tensor


def _padded(chosen: Callable[[Tensor], bool], value: int) -> Callable[[Tensor], Tensor]:
    """The second half of each row is one value, as padding and its mask are."""

    def change(tensor: Tensor) -> Tensor:
        if not chosen(tensor) or tensor.ndim < 2:
            return tensor
        changed = tensor.clone()
        changed[..., -(tensor.shape[-1] // 2) or tensor.shape[-1] :] = value
        return changed

    return change


def _is_mask(tensor: Tensor) -> bool:
    return tensor.dtype == torch.bool


def _repeated(tensor: Tensor) -> Tensor:
    return tensor[:1].expand_as(tensor).clone() if tensor.ndim else tensor


#: Large and tiny values are this many times the example's, or parts of them.
FACTOR = 1e4

CHANGES: Mapping[str, Callable[[Tensor], Tensor]] = {
    "with zeros for all numbers": _floats(torch.zeros_like),
    "with one number everywhere": _floats(lambda tensor: torch.full_like(tensor, 0.5)),
    "with large numbers": _floats(_large),
    "with tiny numbers": _floats(lambda tensor: tensor / FACTOR**3),
    "with one row repeated": _repeated,
    "with zeros for all integers": _integers,
    "with False in the first row of masks": _first_masked,
    "with False everywhere in masks": _booleans(False),
    "with True everywhere in masks": _booleans(True),
    "with zeros at the end of each row of integers": _padded(_is_integer, 0),
    "with False at the end of each row of masks": _padded(_is_mask, False),
    "with True at the end of each row of masks": _padded(_is_mask, True),
}
