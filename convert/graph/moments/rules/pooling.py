r"""Pooling.

The variance of a mean over a window of n elements with average covariance c between two of them is
:math:`v / n + (1 - 1/n) c`; over all positions it is the common variance of the channel, kept exactly for this.
The largest of two correlated Gaussians has closed-form moments (Clark 1961, "The greatest of a finite set of random
variables", equations 2 to 6); a window is taken two by two.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import torch
from torch import Tensor

from ..gaussians import larger_by_halves, larger_moments
from ..registry import CannotFollowError, Operation, formula, rule
from ..state import Uncertain

__all__ = ["average_everywhere"]


def average_everywhere(x: Uncertain, mean: Tensor) -> Uncertain:
    """The mean over all positions, in any shape that still has the features on their axis."""
    common = x.common()
    pooled = replace(x, mean=mean, near=common, beside=None, axis=min(x.axis, mean.ndim - 1))
    return replace(pooled, variance=pooled.along(common).expand_as(mean))


@rule("adaptive_avg_pool1d", "adaptive_avg_pool2d", "adaptive_avg_pool3d")
def adaptive_average(operation: Operation) -> Uncertain:
    """One mean per part of the image."""
    x, size = operation.args[0], operation.args[1]
    size = [size] if isinstance(size, int) else list(size)
    spatial = x.mean.shape[2:]
    if all(part == 1 for part in size):
        return average_everywhere(x, x.mean.mean(tuple(range(2, x.ndim)), keepdim=True))
    if any(whole % part for whole, part in zip(spatial, size, strict=True)):
        raise CannotFollowError(f"windows of different sizes, from {tuple(spatial)} to {tuple(size)}")
    window = [whole // part for whole, part in zip(spatial, size, strict=True)]
    return _average(x, operation.plain, window, window)


@rule("avg_pool1d", "avg_pool2d", "avg_pool3d")
def average_pool(operation: Operation) -> Uncertain:
    """Mean of a window."""
    x, rest = operation.args[0], operation.args[1:]
    spatial = x.ndim - 2
    window = _each(rest[0], spatial)
    stride = _each(rest[1], spatial) if len(rest) > 1 and rest[1] else window
    return _average(x, operation.plain, window, stride)


def _average(x: Uncertain, pool: Callable[[Tensor], Tensor], window: list[int], stride: list[int]) -> Uncertain:
    count = math.prod(window)
    total, common = x.average(x.variance).clamp_min(1e-30), x.common()
    # How two elements of a window are correlated on average: neighbours, diagonal neighbours, and those further apart.
    near, far = (x.near / total).clamp(0, 1), (common / total).clamp(0, 1)
    beside = [2 * (size - 1) / size for size in window]
    diagonal = math.prod(1 + number for number in beside) - 1 - sum(beside)
    others = count - 1 - sum(beside) - diagonal
    together = near * (sum(beside) / count) + near * near * (diagonal / count) + far * (others / count)
    # Their standard deviations differ; how far the product of two falls behind the variance is taken from neighbours.
    alike = x.neighbours(x.sampled(x.variance).sqrt()) / total
    variance = pool(x.variance) * x.along(together * alike + 1 / count)
    return replace(
        x, mean=pool(x.mean), variance=variance, near=_farther(x, x.average(x.variance), max(stride)), beside=None
    )


def _farther(x: Uncertain, total: Tensor, steps: int) -> Tensor:
    """The covariance of elements some steps apart: it decays geometrically from ``near`` to the common one."""
    if steps <= 1:
        return x.near
    common = x.common()
    above = (x.near - common).clamp_min(0)
    decay = (above / (total - common).clamp_min(1e-30)).clamp_max(1)
    return torch.addcmul(common, above, decay if steps == 2 else decay.pow(steps - 1))


@rule("max_pool1d", "max_pool2d", "max_pool3d")
def max_pool(operation: Operation) -> Uncertain:
    """Largest value of a window, taken two by two, one axis after the other."""
    x, rest = operation.args[0], operation.args[1:]
    spatial = x.ndim - 2
    window = _each(rest[0], spatial)
    stride = _each(rest[1], spatial) if len(rest) > 1 and rest[1] else window
    padding = _each(rest[2] if len(rest) > 2 else 0, spatial)
    dilation = _each(rest[3] if len(rest) > 3 else 1, spatial)
    if len(rest) > 4 and rest[4]:
        raise CannotFollowError("ceil_mode=True")
    return _largest(x, window, stride, padding, dilation)


def _largest(x: Uncertain, window: list[int], stride: list[int], padding: list[int], dilation: list[int]) -> Uncertain:
    mean, variance, axes = x.mean, x.variance, list(range(2, x.ndim))
    by_two = set(window) == set(stride) == {2} and not any(padding) and set(dilation) == {1}
    if by_two and x.halves is not None and x.halves[0] is x.mean:
        mean, variance, difference, excess = x.halves[1]()
        total = x.average(variance)
        share = _apart(x, axes[-1], [axes[-1]], window, stride, padding, dilation)(())
        mean, variance = larger_by_halves(mean, variance, difference, excess, variance * (0.5 * share))
        done = [axes.pop()]
    else:
        total, done = x.average(x.variance), []
    for axis in axes:
        size, step, pad, spread = (values[axis - 2] for values in (window, stride, padding, dilation))
        apart = _apart(x, axis, [*done, axis], window, stride, padding, dilation)
        if pad:
            # Far below everything, but finite, so that no difference is NaN.
            low = mean.amin() - 1e3 * (1 + variance.amax().sqrt())
            edge = torch.zeros_like(mean.narrow(axis, 0, 1))
            mean, variance = _padded(mean, edge + low, axis, pad), _padded(variance, edge, axis, pad)
        length = (mean.shape[axis] - spread * (size - 1) - 1) // step * step + 1
        every = (slice(None),) * axis
        places = [(*every, slice(i * spread, i * spread + length, step)) for i in range(size)]
        parts = [(mean[place], variance[place], place) for place in places]
        while len(parts) > 1:
            pairs = zip(parts[::2], parts[1::2], strict=False)
            parts = [
                (*larger_moments(m, v, n, w, (v + w) * apart(here)), there) for (m, v, here), (n, w, there) in pairs
            ] + parts[len(parts) // 2 * 2 :]
        mean, variance, _ = parts[0]
        done.append(axis)
    pooled = replace(x, mean=mean, variance=variance.clamp_min(0), beside=None)
    factor = pooled.average(pooled.variance) / total.clamp_min(1e-30)
    return replace(
        pooled, own=x.own * factor, terms=tuple(term.scaled(factor.sqrt()) for term in x.terms),
        near=_farther(x, total, max(stride)) * factor,
    )  # fmt: skip


def _apart(
    x: Uncertain, axis: int, pooled: list[int], window: list[int], stride: list[int], padding: list[int],
    dilation: list[int],
) -> Callable[[Any], Tensor]:  # fmt: skip
    """How far two neighbours along an axis are apart, by the place of the first (see ``Beside``).

    The axes are pooled one after the other, so behind the first there are only its windows.
    """
    if x.beside is None:
        return partial(_same, x.along(2 - 2 * (x.near / x.average(x.variance).clamp_min(1e-30)).clamp(0, 1)))
    if set(window) == {2} and not any(padding) and set(dilation) == {1}:
        return partial(_same, x.beside(axis, [s if place in pooled else 1 for place, s in enumerate(stride, 2)]))
    share = x.beside(axis, [1] * len(window))
    share = _padded(share, share.narrow(axis, share.shape[axis] - 1, 1), axis, 0, 1)
    for other, (size, step, pad, spread) in enumerate(zip(window, stride, padding, dilation, strict=True), 2):
        if other in pooled:
            share = _padded(share, share.narrow(other, 0, 1), other, pad)
            if other != axis:
                share = share[(*(slice(None),) * other, slice(0, share.shape[other] - spread * (size - 1), step))]
    return share.__getitem__


def _same(share: Tensor, place: Any) -> Tensor:
    return share


def _padded(tensor: Tensor, edge: Tensor, axis: int, before: int, after: int | None = None) -> Tensor:
    after = before if after is None else after
    return torch.cat([*[edge] * before, tensor, *[edge] * after], axis) if before or after else tensor


def _each(value: Any, count: int) -> list[int]:
    values = [value] if isinstance(value, int) else list(value)
    return values * count if len(values) == 1 else values


@formula("mean")
def mean(x: Uncertain, axes: Any = None, keepdim: bool = False, **_: Any) -> Uncertain:
    """Mean over all positions."""
    axes = [axes] if isinstance(axes, int) else list(axes or [])
    found = sorted(axis % x.ndim for axis in axes)
    if found != [axis for axis in range(1, x.ndim) if axis != x.axis] or x.folded > 1:
        raise CannotFollowError(f"a mean over other axes than all positions, over {axes}")
    return average_everywhere(x, x.mean.mean(found, keepdim=keepdim))
