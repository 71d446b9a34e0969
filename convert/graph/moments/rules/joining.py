"""Sums, products and concatenations."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..gaussians import Transformed
from ..registry import CannotFollowError, formula
from ..state import Basis, Term, Uncertain
from .activation import elementwise

__all__: list[str] = []


@formula("add", "add_")
def add(x: Any, y: Any, *, alpha: float = 1) -> Uncertain:
    """A sum; the noise of two branches is taken as independent."""
    if not isinstance(y, Uncertain):
        return replace(x, mean=x.mean + alpha * y)
    if not isinstance(x, Uncertain):
        return replace(_times(y, alpha), mean=x + alpha * y.mean)
    y = _times(y, alpha)
    if (x.axis, x.folded, x.mean.shape[1:]) != (y.axis, y.folded, y.mean.shape[1:]):
        raise CannotFollowError(f"a sum of shapes {tuple(x.mean.shape)} and {tuple(y.mean.shape)}")
    return replace(
        x,
        mean=x.mean + y.mean,
        variance=x.variance + y.variance,
        own=x.own + y.own,
        terms=x.terms + y.terms,
        near=x.near + y.near,
        beside=None,
    )


@formula("sub", "sub_")
def subtract(x: Any, y: Any, *, alpha: float = 1) -> Uncertain:
    """A difference."""
    return add(x, y, alpha=-alpha)


@formula("neg")
def negative(x: Uncertain) -> Uncertain:
    """The other sign."""
    return _times(x, -1.0)


@formula("mul", "mul_")
def multiply(x: Any, y: Any) -> Uncertain:
    """Times something known, or times one gate for all positions of a channel, taken as independent."""
    if not isinstance(x, Uncertain) or not isinstance(y, Uncertain):
        return _times(x, y) if isinstance(x, Uncertain) else _times(y, x)
    if math.prod(x.sizes) < math.prod(y.sizes):
        x, y = y, x
    if math.prod(y.sizes) > 1 or math.prod(x.sizes) == 1 or (x.axis, x.ndim, x.folded) != (y.axis, y.ndim, 1):
        raise CannotFollowError("a product of two activations that vary together")
    first, centre = _times(x, y.mean), x.average(x.mean)
    terms = tuple(term.scaled(centre) for term in y.terms)
    both = y.common() * (centre.square() + x.common())
    own = y.own * centre.square() + y.common() * x.common()
    variance = y.variance * (x.mean.square() + x.variance)
    second = Uncertain(torch.zeros_like(first.mean), variance, own, terms, both, x.axis)
    return add(first, second)


@formula("div", "div_")
def divide(x: Any, y: Any) -> Uncertain:
    """Divided by something known."""
    if isinstance(y, Uncertain):
        raise CannotFollowError("a division by an activation that depends on uncertain weights")
    return _times(x, 1 / y)


def _times(x: Uncertain, factor: float | Tensor) -> Uncertain:
    if not isinstance(factor, Tensor):
        if factor == 1:
            return x
        factor = torch.as_tensor(factor, dtype=x.mean.dtype, device=x.mean.device)
    gain = factor.expand_as(x.mean)
    return elementwise(x, Transformed(x.mean * factor, x.variance * factor.square(), gain))


@formula("cat")
def concatenate(parts: Sequence[Any], axis: int = 0) -> Uncertain:
    """Features behind each other."""
    first = next(part for part in parts if isinstance(part, Uncertain))
    if axis % first.ndim != first.axis or first.folded > 1:
        raise CannotFollowError("a concatenation along another axis than that of the features")
    known = [part if isinstance(part, Uncertain) else Uncertain.of(part, first.axis) for part in parts]
    counts = [part.own.shape[-1] for part in known]
    terms = []
    for index, part in enumerate(known):
        if part.axis != first.axis or part.folded > 1:
            raise CannotFollowError("a concatenation of differently arranged activations")
        for term in part.terms:
            around = (sum(counts[:index]), sum(counts[index + 1 :]))
            columns, products = F.pad(term.basis.columns, (0, 0, *around)), F.pad(term.basis.products, around)
            gain = None if term.gain is None else F.pad(term.gain, around)
            terms.append(Term(Basis(columns, products, term.basis.unpack), term.packed, gain))
    batch = first.mean.flatten(1)[:, :1]

    def joined(tensors: list[Tensor]) -> Tensor:
        return torch.cat([torch.broadcast_tensors(t, batch)[0] for t in tensors], 1)

    return replace(
        first,
        mean=torch.cat([part.mean for part in known], axis),
        variance=torch.cat([part.variance for part in known], axis),
        own=joined([part.own for part in known]),
        terms=tuple(terms),
        near=joined([part.near for part in known]),
        beside=None,
    )
