"""Which layers are read, and where each of them keeps its batch, its positions and its features.

A trial forward records the weight layers in the order of their calls. Pre-activations are their outputs. The last one
gives the model's output and is left out.
"""

from __future__ import annotations

import difflib
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from threading import get_ident
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InvalidTypeError, InvalidValueError
from ..layers.registry import bayesian_type
from ..models.outputs import tensor_paths
from ..models.state import calling_modules
from ..torch_internals import ConvBase

__all__ = ["Layout", "chosen_layouts", "weight_layers", "with_outputs"]

#: Called with the name of a layer and its output.
Note = Callable[[str, Tensor], None]


@dataclass(frozen=True)
class Layout:
    """Where a layer keeps its batch, positions and features.

    Attributes:
        number: Its place among the layers that were called, from which its projection is made.
        name: Path of the module.
        width: Number of features.
        batch: ``"first"`` or ``"second"`` axis, or ``"merged"``: axis 0 is the batch times something.
        axis: Axis of the features, counted from the front where 1, from the back where -1.
    """

    number: int
    name: str
    width: int
    batch: str
    axis: int


def weight_layers(model: nn.Module) -> dict[str, nn.Module]:
    """Linear layers, convolutions, attention and what has a registered twin, each under its first path."""
    return {name: module for name, module in model.named_modules() if _has_weight(module)}


def chosen_layouts(
    model: nn.Module, layers: str | Sequence[str], forward: Callable[[int | None], int]
) -> tuple[Layout, ...]:
    """The layouts of the layers that a user asks for, from one trial forward, or two where sizes coincide.

    Args:
        model: The model.
        layers: ``"all"`` weight layers but the last one called, or the paths of modules.
        forward: Runs the model on a batch, or on at most so many of its examples, and returns their number.

    Raises:
        InvalidTypeError, InvalidValueError: ``layers`` is something else, names a module that is missing or not called
            or has an unknown layout, or nothing is left.
    """
    modules = _asked(model, layers)
    shapes, last, batch = _trial(modules, forward, None)
    if layers == "all":
        shapes.pop(str(last), None)
        if not shapes:
            found_instead = "no Linear, convolution or attention at all" if last is None else f"{last!r} alone"
            raise InvalidValueError(
                f"fit_novelty: {type(model).__name__} has no layer before its last one, got {found_instead}; name "
                f"modules in layers=, there are {_some(_names(model))}."
            )
    elif missing := [name for name in modules if name not in shapes]:
        raise InvalidValueError(
            f"fit_novelty: layers names {', '.join(map(repr, missing))}, which the forward does not call or which "
            "gives no floating tensor; name modules that it calls."
        )
    sequence_first = _sequence_first(model)
    found: list[Layout] = []
    unknown: list[str] = []
    axes = {name: _feature_axis(modules[name], shape) for name, shape in shapes.items()}
    kinds = {name: _kinds(shape, batch, axes[name]) for name, shape in shapes.items()}
    kinds |= {name: ["second"] for name in sequence_first & kinds.keys() if len(shapes[name]) == 3}
    if batch > 1 and any(len(several) > 1 for several in kinds.values()):
        kinds = _distinguished(kinds, modules, axes, forward, batch - 1)
    for number, (name, shape) in enumerate(shapes.items()):
        if kinds[name]:
            found.append(Layout(number, name, shape[axes[name]], kinds[name][0], axes[name]))
        else:
            unknown.append(f"'{name}' {tuple(shape)}")
    if unknown and (layers != "all" or not found):
        raise InvalidValueError(
            f"fit_novelty: the outputs of {', '.join(unknown)} have no axis for the {batch} examples of a "
            "batch; leave these layers out of layers=."
        )
    if unknown:
        warnings.warn(
            f"fit_novelty: {', '.join(unknown)} left out, because their outputs have no axis for the {batch} "
            "examples of a batch.",
            UserWarning,
            stacklevel=4,
        )
    return tuple(found)


@contextmanager
def with_outputs(modules: dict[str, nn.Module], note: Note) -> Iterator[None]:
    """Call ``note`` with the name and the first floating output of each module that this thread calls."""
    thread, handles = get_ident(), []

    def hook(name: str) -> Any:
        def run(module: nn.Module, args: Any, output: Any) -> None:
            if get_ident() == thread:
                tensor = next((t for _, t in tensor_paths(output) if t.is_floating_point()), None)
                if tensor is not None and tensor.ndim:
                    note(name, tensor.detach())

        return run

    try:
        for name, module in modules.items():
            handles.append(module.register_forward_hook(hook(name)))
        with calling_modules():
            yield
    finally:
        for handle in handles:
            handle.remove()


def _asked(model: nn.Module, layers: Any) -> dict[str, nn.Module]:
    if layers == "all":
        return weight_layers(model)
    if isinstance(layers, str) or not isinstance(layers, Sequence) or not all(isinstance(n, str) for n in layers):
        raise InvalidTypeError(f"fit_novelty: layers must be 'all' or a list of module names, got {layers!r}.")
    modules = dict(model.named_modules(remove_duplicate=False))
    if not layers:
        raise InvalidValueError(f"fit_novelty: layers must name a module, got none; there are {_some(_names(model))}.")
    if missing := [name for name in layers if name not in modules]:
        near = difflib.get_close_matches(missing[0], modules, 3)
        hint = f"did you mean {', '.join(map(repr, near))}?" if near else f"there are {_some(_names(model))}."
        raise InvalidValueError(
            f"fit_novelty: layers names {', '.join(map(repr, missing))}, which {type(model).__name__} does not have; "
            f"{hint}"
        )
    return {name: modules[name] for name in layers}


def _trial(
    modules: dict[str, nn.Module], forward: Callable[[int | None], int], most: int | None
) -> tuple[dict[str, torch.Size], str | None, int]:
    """The shapes that modules give at their first calls, the last one called, and the number of examples."""
    shapes: dict[str, torch.Size] = {}
    last: str | None = None

    def note(name: str, output: Tensor) -> None:
        nonlocal last
        shapes.setdefault(name, output.shape)
        last = name

    with with_outputs(modules, note):
        batch = forward(most)
    return shapes, last, batch


def _feature_axis(module: nn.Module, shape: torch.Size) -> int:
    channels = isinstance(module, ConvBase) or (not _has_weight(module) and len(shape) > 3)
    return 1 if channels and len(shape) > 2 else -1


def _kinds(shape: torch.Size, batch: int, axis: int) -> list[str]:
    """Where the examples can be, the most likely first."""
    possible = {
        "first": len(shape) > 1 and shape[0] == batch,
        "second": len(shape) > 2 and axis == -1 and shape[1] == batch,
        "merged": len(shape) > 1 and shape[0] != batch and shape[0] % batch == 0,
    }
    return [kind for kind, fits in possible.items() if fits]


def _distinguished(
    kinds: dict[str, list[str]],
    modules: dict[str, nn.Module],
    axes: dict[str, int],
    forward: Callable[[int | None], int],
    most: int,
) -> dict[str, list[str]]:
    """Those that also fit with fewer examples; all where the model does not take these."""
    try:
        shapes, _, batch = _trial({name: modules[name] for name in kinds}, forward, most)
    except Exception:
        return kinds
    return {
        name: [kind for kind in several if name in shapes and kind in _kinds(shapes[name], batch, axes[name])]
        or several
        for name, several in kinds.items()
    }


def _has_weight(module: nn.Module) -> bool:
    kind = getattr(type(module), "deterministic_class", type(module))
    return isinstance(module, (nn.Linear, ConvBase, nn.MultiheadAttention)) or bayesian_type(kind) is not None


def _sequence_first(model: nn.Module) -> set[str]:
    """The modules whose axis 0 is the sequence: attention and transformer layers with ``batch_first=False``."""
    found = set()
    for name, module in model.named_modules():
        attention = module.self_attn if isinstance(module, _TRANSFORMER_LAYERS) else module
        if isinstance(attention, nn.MultiheadAttention) and not attention.batch_first:
            found |= {f"{name}.{inner}".strip(".") for inner, _ in module.named_modules()} | {name}
    return found


_TRANSFORMER_LAYERS = (nn.TransformerEncoderLayer, nn.TransformerDecoderLayer)


def _names(model: nn.Module) -> list[str]:
    return [name for name, module in model.named_modules() if name and not list(module.children())]


def _some(names: list[str], most: int = 8) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(map(repr, names[:most])) + more if names else "none"
