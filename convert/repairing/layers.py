"""Layers as products of rows: outputs = inputs @ matrix.T + bias, for each group of channels.

Linear layers, convolutions of all kinds (grouped, strided, dilated, transposed; some random positions of every image)
and the projections of ``nn.MultiheadAttention``.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod
from typing import Any, ClassVar, TypeAlias

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from bensemble.torch_internals import ConvBase

__all__ = ["Layer", "Use", "repairable_layers"]

#: Inputs and outputs of one use of a layer.
Use: TypeAlias = "tuple[Tensor, Tensor]"

#: The arguments of attention, in order.
_ROLES = ("query", "key", "value")
#: Random positions of every image that a convolution is fitted to.
POSITIONS = 40


@dataclass(frozen=True)
class Layer:
    """A weight whose use is a product of rows, at one place of a network.

    Attributes:
        path: The module whose call shows the inputs.
        owner: The module that holds the weight.
        weight: Name of the weight there.
        bias: Name of the bias there, None without one.
    """

    path: str
    owner: str
    weight: str = "weight"
    bias: str | None = None
    #: Whether the module at ``path`` returns the outputs, with the features last.
    features_last: ClassVar[bool] = True
    #: Whether the network goes on with the outputs as :meth:`seen` gives them.
    is_used: ClassVar[bool] = True

    @property
    def name(self) -> str:
        """The name of the weight in the network."""
        return f"{self.owner}.{self.weight}".lstrip(".")

    @property
    def label(self) -> str:
        """The name, and which part of the weight it is; no two layers share one."""
        return self.name

    def tensors(self, network: nn.Module) -> tuple[Tensor, Tensor | None]:
        """Weight and bias in a network."""
        module = network.get_submodule(self.owner)
        return getattr(module, self.weight), None if self.bias is None else getattr(module, self.bias)

    def seen(self, module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Use:
        """Inputs and outputs in one call of the module at ``path``."""
        return (args[0] if args else next(iter(kwargs.values()))), output

    def matrix(self, module: nn.Module, weight: Tensor) -> Tensor:
        """The weight as (groups, outputs, inputs)."""
        return weight[None]

    def from_matrix(self, module: nn.Module, matrix: Tensor) -> Tensor:
        """The weight again."""
        return matrix[0]

    def positions(self, output: Tensor, generator: torch.Generator) -> Tensor | None:
        """The positions of an output that count, (rows, 1 + spatial axes) with the example first; None for all."""
        return None

    def rows(self, module: nn.Module, inputs: Tensor, outputs: Tensor, at: Tensor | None) -> tuple[Tensor, Tensor]:
        """Inputs (groups, rows, inputs) and outputs (groups, rows, outputs)."""
        return inputs.reshape(1, -1, inputs.shape[-1]), outputs.reshape(1, -1, outputs.shape[-1])


class _Transposed(Layer):
    """Hugging Face's Conv1D, a Linear whose weight is (in, out)."""

    def matrix(self, module: nn.Module, weight: Tensor) -> Tensor:
        return weight.t()[None]

    def from_matrix(self, module: nn.Module, matrix: Tensor) -> Tensor:
        return matrix[0].t()


class _Convolution(Layer):
    features_last = False

    def seen(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Use:
        inputs, output = super().seen(module, args, kwargs, output)
        alone = inputs.ndim == len(module.kernel_size) + 1  # an image without a batch axis
        return (inputs[None], output[None]) if alone else (inputs, output)

    def matrix(self, module: Any, weight: Tensor) -> Tensor:
        return weight.reshape(module.groups, module.out_channels // module.groups, -1)

    def from_matrix(self, module: Any, matrix: Tensor) -> Tensor:
        return matrix.reshape(module.out_channels, module.in_channels // module.groups, *module.kernel_size)

    def positions(self, output: Tensor, generator: torch.Generator) -> Tensor | None:
        spatial = output.shape[2:]
        count = min(POSITIONS, prod(spatial))
        flat = torch.stack([torch.randperm(prod(spatial), generator=generator)[:count] for _ in range(len(output))])
        example = torch.arange(len(output))[:, None].expand_as(flat)
        return torch.stack([example, *torch.unravel_index(flat, spatial)], -1).flatten(0, 1)

    def rows(self, module: Any, inputs: Tensor, outputs: Tensor, at: Tensor | None) -> tuple[Tensor, Tensor]:
        assert at is not None
        places = at.to(inputs.device).unbind(-1)
        padded = self._padded(module, inputs, outputs)
        patches = _patches(padded, places, module.kernel_size, self._strides(module), module.dilation)
        found = patches.reshape(len(at), module.groups, -1), outputs.movedim(1, -1)[places]
        return found[0].transpose(0, 1), found[1].reshape(len(at), module.groups, -1).transpose(0, 1)

    def _padded(self, module: Any, inputs: Tensor, outputs: Tensor) -> Tensor:
        around = [side for pair in reversed(self._padding(module, inputs, outputs)) for side in pair]
        mode = module.padding_mode
        return F.pad(inputs, around) if mode == "zeros" else F.pad(inputs, around, mode=mode)

    def _padding(self, module: Any, inputs: Tensor, outputs: Tensor) -> list[tuple[int, int]]:
        """What the module says where that leads to the size of the outputs, else what their size asks for."""
        axes = zip(inputs.shape[2:], outputs.shape[2:], module.stride, module.dilation, module.kernel_size, strict=True)
        asked = [(out - 1) * stride + d * (k - 1) + 1 - size for size, out, stride, d, k in axes]
        if not isinstance(module.padding, str):
            spare = [2 * side - total for side, total in zip(module.padding, asked, strict=True)]
            if all(0 <= some < stride for some, stride in zip(spare, module.stride, strict=True)):
                return [(side, side) for side in module.padding]
        return [(max(total, 0) // 2, max(total, 0) - max(total, 0) // 2) for total in asked]

    def _strides(self, module: Any) -> tuple[int, ...]:
        return tuple(module.stride)


class _TransposedConvolution(_Convolution):
    """A convolution of its inputs with zeros in between, by the flipped kernel."""

    def matrix(self, module: Any, weight: Tensor) -> Tensor:
        g, kernel = module.groups, tuple(module.kernel_size)
        flipped = weight.flip(tuple(range(2, weight.ndim)))
        apart = flipped.reshape(g, module.in_channels // g, module.out_channels // g, *kernel).transpose(1, 2)
        return apart.reshape(g, module.out_channels // g, -1)

    def from_matrix(self, module: Any, matrix: Tensor) -> Tensor:
        g, kernel = module.groups, tuple(module.kernel_size)
        apart = matrix.reshape(g, module.out_channels // g, module.in_channels // g, *kernel).transpose(1, 2)
        flipped = apart.reshape(module.in_channels, module.out_channels // g, *kernel)
        return flipped.flip(tuple(range(2, flipped.ndim)))

    def _padded(self, module: Any, inputs: Tensor, outputs: Tensor) -> Tensor:
        sizes = [(size - 1) * stride + 1 for size, stride in zip(inputs.shape[2:], module.stride, strict=True)]
        apart = inputs.new_zeros(*inputs.shape[:2], *sizes)
        apart[(slice(None), slice(None), *(slice(None, None, stride) for stride in module.stride))] = inputs
        around: list[int] = []
        for axis in reversed(range(len(sizes))):
            reach = module.dilation[axis] * (module.kernel_size[axis] - 1)
            before = reach - module.padding[axis]
            around += [before, outputs.shape[2 + axis] + reach - sizes[axis] - before]
        return F.pad(apart, around)  # a negative number cuts

    def _strides(self, module: Any) -> tuple[int, ...]:
        return (1,) * len(module.kernel_size)


@dataclass(frozen=True)
class _AttentionInput(Layer):
    """Some rows of the packed projection of queries, keys and values.

    Attributes:
        index: 0 for queries, 1 for keys, 2 for values.
    """

    index: int = 0
    features_last: ClassVar[bool] = False
    is_used: ClassVar[bool] = False

    @property
    def label(self) -> str:
        return f"{self.name} of {_ROLES[self.index]}"

    def seen(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Use:
        inputs = (dict(zip(_ROLES, args, strict=False)) | kwargs)[_ROLES[self.index]]
        weight = module.in_proj_weight.chunk(3)[self.index]
        bias = None if module.in_proj_bias is None else module.in_proj_bias.chunk(3)[self.index]
        return inputs, F.linear(inputs, weight, bias)

    def tensors(self, network: nn.Module) -> tuple[Tensor, Tensor | None]:
        weight, bias = super().tensors(network)
        return weight.chunk(3)[self.index], None if bias is None else bias.chunk(3)[self.index]


class _AttentionOutput(Layer):
    """The output projection, whose inputs are those of the module with an identity in its place."""

    features_last = False

    def seen(self, module: Any, args: tuple[Any, ...], kwargs: dict[str, Any], output: Any) -> Use:
        projection = module.out_proj
        weight = projection.weight
        module.out_proj = nn.Linear(len(weight), len(weight), bias=False).to(weight)
        try:
            nn.init.eye_(module.out_proj.weight)
            heads = module.forward(*args, **kwargs)[0]
        finally:
            module.out_proj = projection
        return heads, output[0]


def _patches(
    padded: Tensor, at: tuple[Tensor, ...], kernel: tuple[int, ...], strides: tuple[int, ...], dilation: tuple[int, ...]
) -> Tensor:
    """What the kernel sees at some positions, (rows, channels, *kernel)."""
    axes = len(kernel)
    index: list[Any] = [at[0].reshape(-1, *(1,) * axes), slice(None)]
    for axis, (place, size, stride, step) in enumerate(zip(at[1:], kernel, strides, dilation, strict=True)):
        seen = place[:, None] * stride + torch.arange(size, device=place.device) * step
        index.append(seen.reshape(len(place), *(size if other == axis else 1 for other in range(axes))))
    return padded[tuple(index)].movedim(-1, 1)  # an index on both sides of a slice puts the slice last


def repairable_layers(network: nn.Module) -> Iterator[Layer]:
    """Every layer of a network that can be repaired, each module once."""
    inside: set[int] = set()
    for path, module in network.named_modules():
        if isinstance(module, nn.MultiheadAttention):
            inside.add(id(module.out_proj))
            prefix = f"{path}." if path else ""
            if module.in_proj_weight is not None:
                bias = None if module.in_proj_bias is None else "in_proj_bias"
                for index in range(3):
                    yield _AttentionInput(path, path, "in_proj_weight", bias, index)
            yield _AttentionOutput(path, f"{prefix}out_proj", bias=_bias(module.out_proj))
        elif id(module) not in inside:
            kind = _kind(module)
            if kind is not None:
                yield kind(path, path, bias=_bias(module))


def _kind(module: nn.Module) -> type[Layer] | None:
    if isinstance(module, ConvBase):
        return _TransposedConvolution if module.transposed else _Convolution
    if isinstance(module, nn.Linear):
        return Layer
    return _Transposed if type(module).__name__ == "Conv1D" and hasattr(module, "nf") else None


def _bias(module: nn.Module) -> str | None:
    return "bias" if getattr(module, "bias", None) is not None else None
