"""Running any model twice in the same way, and comparing what comes out."""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

import numpy
import torch
from torch import Tensor, nn


def seed_all(seed: int) -> None:
    """Seed every generator that a forward may use."""
    torch.manual_seed(seed)
    random.seed(seed)
    numpy.random.seed(seed)


def run(model: nn.Module, inputs: Any, seed: int = 0, grad: bool = False) -> dict[str, Tensor]:
    """Outputs of one forward by path, the global random states seeded first."""
    seed_all(seed)
    inputs = duplicate(inputs)
    with torch.set_grad_enabled(grad):
        if isinstance(inputs, Tensor):
            output = model(inputs)
        elif isinstance(inputs, Mapping):
            output = model(**inputs)
        else:
            output = model(*inputs)
    return {path: value if grad else value.detach() for path, value in flatten(output)}


def duplicate(value: Any) -> Any:
    """The same structure with copied tensors: some models write into their inputs."""
    if isinstance(value, Tensor):
        return value.detach().clone()
    if isinstance(value, Mapping):
        return {key: duplicate(item) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return type(value)(duplicate(item) for item in value)
    return value


def flatten(value: Any, path: str = "") -> Iterator[tuple[str, Tensor]]:
    """Every tensor inside nested tuples, mappings and dataclasses."""
    if isinstance(value, Tensor):
        yield path or "output", value
    elif isinstance(value, Mapping):
        for key, item in value.items():
            yield from flatten(item, f"{path}.{key}" if path else str(key))
    elif isinstance(value, (list, tuple)):
        for index, item in enumerate(value):
            yield from flatten(item, f"{path}[{index}]")
    elif is_dataclass(value) and not isinstance(value, type):
        for spec in fields(value):
            yield from flatten(getattr(value, spec.name), f"{path}.{spec.name}" if path else spec.name)


def first_difference(one: Mapping[str, Tensor], other: Mapping[str, Tensor]) -> str | None:
    """None when both hold the same tensors bit for bit (NaN equals NaN), else where they part."""
    if list(one) != list(other):
        return f"outputs {list(one)[:6]} became {list(other)[:6]}"
    for path, tensor in one.items():
        match = other[path]
        if tensor.shape != match.shape or tensor.dtype != match.dtype:
            return f"{path}: {tensor.dtype} {tuple(tensor.shape)} became {match.dtype} {tuple(match.shape)}"
        if not identical(tensor, match):
            return f"{path}: max abs difference {distance(tensor, match):.3g}, max abs value {scale(tensor):.3g}"
    return None


def identical(one: Tensor, other: Tensor) -> bool:
    """torch.equal, with NaN equal to NaN."""
    if torch.equal(one, other):
        return True
    return one.shape == other.shape and bool(((one == other) | ((one != one) & (other != other))).all())


def distance(one: Tensor, other: Tensor) -> float:
    """Largest absolute difference of finite entries, infinity for different shapes."""
    if one.shape != other.shape:
        return float("inf")
    if one.numel() == 0:
        return 0.0
    difference = (one.to(torch.complex128) - other.to(torch.complex128)).abs().nan_to_num(0.0, posinf=0.0)
    return float(difference.max())


def scale(tensor: Tensor) -> float:
    """Largest finite absolute value."""
    return float(tensor.to(torch.complex128).abs().nan_to_num(0.0, posinf=0.0).max()) if tensor.numel() else 0.0


def floating(outputs: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """The outputs that can carry a gradient."""
    return {path: value for path, value in outputs.items() if value.is_floating_point() or value.is_complex()}
