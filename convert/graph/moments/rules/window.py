"""What the window of a convolution reads: which taps fall inside, and how much of the input each place gives."""

from __future__ import annotations

from collections.abc import Sequence
from functools import cached_property
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from ..registry import Operation

__all__ = ["Bands", "Window", "in_shares", "mixed"]


class Window:
    """A convolution of one channel, over inputs of one size.

    Args:
        operation: The convolution.
        spatial: Size of the input.
        weight: Its weight.
    """

    def __init__(self, operation: Operation, spatial: Sequence[int], weight: Tensor) -> None:
        self.kernel, self.spatial, self.weight = tuple(weight.shape[2:]), tuple(spatial), weight
        self.transposed = "transpose" in operation.name
        self._function = operation.function
        self._rest, self._kwargs = list(operation.args[3:]), dict(operation.kwargs)
        for name in ("bias", "groups"):
            self._kwargs.pop(name, None)
        self._rest[3:4] = [1] if len(self._rest) > 3 else []

    def __call__(self, x: Tensor, weight: Tensor) -> Tensor:
        """The convolution, with any number of channels in one group."""
        result: Tensor = self._function(x, weight, None, *self._rest, **self._kwargs)
        return result

    def halved(self, x: Tensor, weight: Tensor, bias: Tensor | None) -> tuple[Tensor, Tensor]:
        """Half the sum, and half the difference, of outputs at even places of the last axis and the next; stride one.

        Both are convolutions by taps of the two outputs together: one pass over the input instead of one over its
        outputs, which are larger.
        """
        stride, padding, dilation = self._settings
        even, odd = F.pad(0.5 * weight, (0, 1)), F.pad(0.5 * weight, (1, 0))
        shift = None if bias is None else torch.cat([bias, torch.zeros_like(bias)])
        convolve: Any = F.conv1d if len(self.kernel) == 1 else F.conv2d
        both = convolve(x, torch.cat([even + odd, even - odd]), shift, [*stride[:-1], 2], padding, dilation)
        total, difference = both.chunk(2, 1)
        return total, difference

    @property
    def halves(self) -> bool:
        """Whether :meth:`halved` applies."""
        axes = zip(self.spatial, self.outputs, self.kernel, *self._settings, strict=True)
        # "same" pads even kernels with one more behind than in front.
        alike = all(
            count == (size + 2 * padding - dilation * (taps - 1) - 1) // stride + 1
            for size, count, taps, stride, padding, dilation in axes
        )
        return alike and self.setting(0, -1) == self.setting(2, -1) == 1 and self.outputs[-1] % 2 == 0

    @property
    def separable(self) -> bool:
        """Whether it can be taken apart into its axes."""
        return len(self.kernel) <= 2 and not self.transposed

    @cached_property
    def hits(self) -> Tensor:
        """Which tap reads inside of the input at which output position: (taps, positions), zeros and ones."""
        count = torch.Size(self.kernel).numel()
        shape = (1, count, *self.kernel) if self.transposed else (count, 1, *self.kernel)
        eye = torch.eye(count, dtype=self.weight.dtype, device=self.weight.device)
        return self(self.weight.new_ones(1, 1, *self.spatial), eye.view(shape))[0].flatten(1)

    @cached_property
    def pairs(self) -> Tensor:
        """How often two taps both read inside."""
        return self.hits @ self.hits.t() / self.hits.shape[1]

    @cached_property
    def read(self) -> Tensor:
        """How much the taps read each input position, one where all of them do: edges count less."""
        size = self.weight.square().mean((0, 1), keepdim=True).sqrt()
        with torch.enable_grad():
            probe = self.weight.new_ones(1, 1, *self.spatial).requires_grad_()
            mean = self(probe, (size / size.sum().clamp_min(1e-30)).detach()).mean()
            return torch.autograd.grad(mean, probe)[0] * probe.numel()

    @cached_property
    def outputs(self) -> tuple[int, ...]:
        """Size of the output."""
        return tuple(self(self.weight.new_ones(1, 1, *self.spatial), self.weight[:1, :1]).shape[2:])

    @property
    def _settings(self) -> list[list[int]]:
        """Strides, paddings in front and dilations, each by axis."""
        return [[self.setting(place, axis) for axis in range(len(self.kernel))] for place in range(3)]

    def setting(self, place: int, axis: int) -> int:
        """Stride (0), padding in front (1) or dilation (2) along an axis."""
        name, default = (("stride", 1), ("padding", 0), ("dilation", 1))[place]
        value: Any = self._rest[place] if place < len(self._rest) else self._kwargs.get(name, default)
        if isinstance(value, str):
            return self.setting(2, axis) * (self.kernel[axis] - 1) // 2 if value == "same" else 0
        return int(value) if isinstance(value, int) else int(value[axis % len(value)])


class Bands:
    """A convolution of one channel over one or two axes, as a matrix for each.

    Args:
        window: The convolution.
        taps: Weights that are not negative, shape (1, 1, *kernel); taken as the product of what they are along each
            axis.
    """

    def __init__(self, window: Window, taps: Tensor) -> None:
        total, axes = taps.sum().clamp_min(1e-30), range(len(window.kernel))
        self._window = window
        self._lines = [taps.sum([other + 2 for other in axes if other != axis] or [0]).flatten() for axis in axes]
        self._lines[1:] = [line / total for line in self._lines[1:]]

    def __call__(self, x: Tensor) -> Tensor:
        """The convolution of (B, 1, ...)."""
        return _through(x, [self._matrix(axis) for axis in range(len(self._lines))])

    def of_two(self, x: Tensor, along: int, steps: Sequence[int]) -> Tensor:
        """Mean of an output and the next along an axis, at every so many-th place of each axis."""
        matrices = [self._matrix(axis, step) for axis, step in enumerate(steps)]
        whole = self._matrix(along)
        matrices[along] = (0.5 * (whole[:-1] + whole[1:]))[:: steps[along]]
        return _through(x, matrices)

    def of_pairs(self, x: Tensor, along: int, steps: Sequence[int]) -> Tensor:
        """The convolution of something that each element has with the next along an axis, zero beyond the edges."""
        matrices = [self._matrix(axis, step) for axis, step in enumerate(steps)]
        matrices[along] = self._matrix(along, pairs=1)[:: steps[along]]
        return _through(x, matrices)

    def _matrix(self, axis: int, step: int = 1, pairs: int = 0) -> Tensor:
        window, line = self._window, self._lines[axis]
        stride, padding, dilation = (window.setting(place, axis) for place in range(3))
        size, count = window.spatial[axis], window.outputs[axis]
        outputs, taps = torch.arange(count - pairs)[:, None], torch.arange(len(line))[None]
        inputs = outputs * stride + taps * dilation - padding
        inside = (inputs >= 0) & (inputs < size - pairs)
        matrix = line.new_zeros(count - pairs, size - pairs)
        matrix[outputs.expand_as(inputs)[inside], inputs[inside]] = line.expand(count - pairs, -1)[inside]
        return matrix if step == 1 else matrix[: count - 1 : step].contiguous()


def in_shares(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Weights (1, i, ...) as a share for each channel, shape (1, i, 1, ...), times taps, shape (1, 1, ...)."""
    channels = weight.sum(tuple(range(2, weight.ndim)), keepdim=True)
    return channels / channels.sum().clamp_min(1e-30), weight.sum(1, keepdim=True)


def mixed(x: Tensor, channels: Tensor) -> Tensor:
    """Mean over the channels by their shares."""
    if x.shape[1] == 1:
        return x
    return (x * channels).sum(1, keepdim=True)


def _through(x: Tensor, matrices: Sequence[Tensor]) -> Tensor:
    x = x @ matrices[-1].t().contiguous()
    return x if len(matrices) == 1 else matrices[0] @ x
