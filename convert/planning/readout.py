"""The proof on data that a model's output is a layer's output, moved or resized, times a constant.

With y the output of the layer and f all that follows, either f(y)_i = c y_pi(i) for every i, or f resizes the positions
of y. Vector-Jacobian products at the trained y propose c and pi: J^T 1 is c wherever y is read, and with the digits of
i in place of 1 it tells i. Values then prove them: f is computed for a y of random signs over six orders of magnitude,
and for -y. A rectifier, a bound, a soft cap, a sort, or anything that is added shows in one of the two.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch
import torch.nn.functional as F
from torch import Tensor

from bensemble.prediction.places import output_places

from .cut_runs import Trials

__all__ = ["is_link", "is_moved", "is_resized"]

_HALF = (torch.float16, torch.bfloat16)
#: Largest power of ten that is tried, in full and in half precision.
_LARGEST_EXPONENT = (4, 2)
#: Rounding errors that a factor and a cast may cost.
_ROUNDINGS = 32


def is_moved(trials: Trials, path: str, output: Tensor, leaf: Tensor, without_links: bool) -> bool:
    """Whether every element of the output is one of the layer's output, each read once at most, times one constant.

    Args:
        trials: Runs of the model.
        path: The layer.
        output: The model's output.
        leaf: The layer's output in the graph of the former.
        without_links: Whether softmax and sigmoid behind the layer are left out, as they were for ``output``.
    """
    found = _proposal(output, leaf)
    if found is None:
        return False
    factor, positions = found
    spread = _spread_like(leaf)
    for sign in (1, -1):
        value = sign * spread
        got, _ = trials.replaced(path, lambda _, value=value: value, without_links)  # type: ignore[misc]
        expected = factor * value.flatten()[positions].double()
        if got.shape != output.shape or not _close(got.flatten(), expected, value.dtype, expected.abs()):
            return False
    return True


def is_resized(trials: Trials, path: str, output: Tensor, leaf: Tensor, without_links: bool) -> bool:
    """Whether the output is the layer's output at other positions: linear, each channel alone, constants kept.

    The arguments are those of :func:`is_moved`. Example and channel are the first two axes.
    """
    if output.ndim != leaf.ndim or output.shape[:2] != leaf.shape[:2] or output.ndim < 3:
        return False

    def result(value: Tensor) -> Tensor:
        return trials.replaced(path, lambda _: value, without_links)[0]

    one, other = (_random_like(leaf, seed) for seed in (1, 2))
    levels = one.flatten(2)[..., :1]
    constant = levels.reshape(levels.shape[:2] + (1,) * (leaf.ndim - 2))
    kept = result(constant.expand_as(leaf).clone())
    if kept.shape != output.shape or not _close(kept, constant.expand_as(output).double(), leaf.dtype):
        return False
    large = 10.0 ** _LARGEST_EXPONENT[leaf.dtype in _HALF]
    mixed = result(large * one - 0.5 * large * other)
    return _close(mixed, large * result(one).double() - 0.5 * large * result(other).double(), leaf.dtype)


def is_link(name: str, output: Tensor, before: Tensor) -> bool:
    """Whether the output is this softmax or sigmoid of another tensor, over any of its axes.

    Args:
        name: "softmax", "log_softmax", "sigmoid" or "log_sigmoid".
        output: The output.
        before: What it may be a function of.
    """
    logits = before.detach().double()
    axes = range(logits.ndim)
    functions: dict[str, Iterable[Tensor]] = {
        "sigmoid": map(torch.sigmoid, [logits]),
        "log_sigmoid": map(F.logsigmoid, [logits]),
        "softmax": map(logits.softmax, axes),
        "log_softmax": map(logits.log_softmax, axes),
    }
    return output.shape == before.shape and any(_close(output, expected, before.dtype) for expected in functions[name])


def _proposal(output: Tensor, leaf: Tensor) -> tuple[float, Tensor] | None:
    """The constant, and for each element of the output the position in the leaf that it reads."""
    found = output_places(output, leaf)
    if found is None:
        return None
    positions, factors = found
    factor = float(factors.abs().max().copysign(factors.flatten()[0]))
    return (factor, positions) if _close(factors, torch.full_like(factors, factor), leaf.dtype) else None


def _random_like(leaf: Tensor, seed: int) -> Tensor:
    """Random numbers about 1, of both signs, in the layout of a tensor."""
    value = torch.randn(leaf.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return torch.empty_like(leaf).copy_(value).detach()


def _spread_like(leaf: Tensor) -> Tensor:
    """Numbers of random sign in the layout of a tensor, with sizes from 10^4 (half precision: 10^2) down to 10^-2."""
    generator, count = torch.Generator().manual_seed(0), leaf.numel()
    order = torch.randperm(count, generator=generator).double() / max(count - 1, 1)
    largest = _LARGEST_EXPONENT[leaf.dtype in _HALF]
    size = 10 ** (largest - (largest + 2) * order)
    sign = torch.randint(0, 2, (count,), generator=generator) * 2 - 1
    return torch.empty_like(leaf).copy_((size * sign).reshape(leaf.shape)).detach()


def _close(found: Tensor, expected: Tensor, dtype: torch.dtype, scale: Tensor | None = None) -> bool:
    """Equal up to rounding in the coarser of two dtypes; relative to the largest value, or to a scale of each."""
    coarsest = max(torch.finfo(dtype).eps, torch.finfo(found.dtype).eps)
    found, expected = found.detach().double(), expected.double()
    if not bool(found.isfinite().all()):
        return False
    bound = (expected.abs().max() if scale is None else scale) * coarsest * _ROUNDINGS
    return bool(((found - expected).abs() <= bound + torch.finfo(torch.float32).tiny).all())
