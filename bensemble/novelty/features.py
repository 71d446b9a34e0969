"""The features of a batch: the pre-activations of some layers, one row for each example or each position.

Features are reduced inside the forward that makes them: averaged over positions where the model's output is one for
each example, and projected where a layer is wide. So no layer's output is held for longer than torch itself holds it.
"""

from __future__ import annotations

import sys
from collections.abc import Collection, Iterator, Mapping
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from ..errors import InvalidValueError
from ..gaussian import precise
from ..models.batches import Inputs
from ..models.forwards import forward
from ..models.outputs import OutputSelector
from ..models.state import evaluating
from ..noise.stack import mean_mode
from ..torch_internals import is_compiled
from .layouts import Layout, with_outputs
from .projection import folded, random_signs

__all__ = ["FeatureReader", "home", "mean_output"]

#: Rows that are computed with at once.
ROWS = 2**15
#: Features are projected to so many dimensions for each leading direction that is kept of them.
DIMENSIONS = 4


@dataclass(frozen=True)
class FeatureReader:
    """Reads the features of a model.

    Attributes:
        layouts: The layers.
        projection: Leading directions that are kept of the features; None for all. Features of more than
            :data:`DIMENSIONS` times as many dimensions are projected to that many first.
        seed: Seed of the projections.
        per_position: Whether the model's output has positions, such as tokens or pixels.
        joint: Whether the features of all layers make one row, or each layer has its own.
    """

    layouts: tuple[Layout, ...]
    projection: int | None
    seed: int
    per_position: bool
    joint: bool
    _signs: dict[tuple[int, torch.device], Tensor] = field(default_factory=dict, repr=False, compare=False)

    @property
    def sizes(self) -> tuple[int, ...]:
        """Features of each Gaussian: of the one for all layers, or of one for each."""
        widths = [self._width(layout) for layout in self.layouts]
        return (min(sum(widths), self._most),) if self.joint else tuple(widths)

    def without(self, names: Collection[str]) -> FeatureReader:
        """The reader of the other layers, which have a Gaussian each."""
        return replace(self, layouts=tuple(layout for layout in self.layouts if layout.name not in names))

    def read(
        self, verb: str, model: nn.Module, inputs: Inputs, output: OutputSelector | None
    ) -> tuple[Tensor, list[Tensor]]:
        """The output of the mean network for one batch, and the features of each layer.

        Args:
            verb: The public function that asks.
            model: Any model.
            inputs: The inputs on the model's device.
            output: Which part of a structured output.

        Returns:
            The output, and for each layer a tensor of shape (B, k), or (B, ..., k) with the layer's own positions;
            projected already.

        Raises:
            InvalidValueError: A layer is not called, or has another width than in the fit.
        """
        with self.watching(model, inputs) as found:
            raw = mean_output(verb, model, inputs, output)
        return raw, self.features(found)

    @contextmanager
    def watching(self, model: nn.Module, inputs: Inputs) -> Iterator[list[list[Tensor]]]:
        """While it is open, a forward of the model adds what each layer gives to the lists; see :meth:`features`."""
        numbers = {layout.name: number for number, layout in enumerate(self.layouts)}
        found: list[list[Tensor]] = [[] for _ in self.layouts]
        batch = _examples(inputs)
        mask = inputs.get("attention_mask") if isinstance(inputs, Mapping) else None

        def note(name: str, tensor: Tensor) -> None:
            found[numbers[name]].append(self._reduced(numbers[name], tensor, batch, mask))

        with with_outputs({layout.name: model.get_submodule(layout.name) for layout in self.layouts}, note):
            yield found

    def features(self, found: list[list[Tensor]]) -> list[Tensor]:
        """The features of each layer, from the outputs of all its calls in a forward."""
        for layout, calls in zip(self.layouts, found, strict=True):
            if not calls:
                raise InvalidValueError(f"novelty: '{layout.name}' is not called for these inputs; leave it out.")
        return [_mean_of_calls(calls) for calls in found]

    def parts(self, features: list[Tensor], shape: torch.Size) -> Iterator[tuple[slice, list[Tensor]]]:
        """Examples in small parts, and their :meth:`rows` in float64.

        Args:
            features: What :meth:`read` returned.
            shape: Shape of the output without its class axis, (B, ...).
        """
        step = max(1, ROWS // max(shape[1:].numel(), 1))
        for start in range(0, shape[0], step):
            part = slice(start, min(start + step, shape[0]))
            rows = self.rows([tensor[part] for tensor in features], shape[1:])
            yield part, [x.to(home(x.device)).double() for x in rows]

    def rows(self, features: list[Tensor], positions: torch.Size) -> list[Tensor]:
        """For each Gaussian its rows, one for each example or position of the output."""
        rows = [self._spread(number, tensor, positions) for number, tensor in enumerate(features)]
        return [self._folded(torch.cat(rows, 1), -1, self._most)] if self.joint else rows

    def _reduced(self, number: int, tensor: Tensor, batch: int | None, mask: Tensor | None) -> Tensor:
        """The output of one layer as (B, ..., k)."""
        layout = self.layouts[number]
        x = precise(tensor)
        if x.shape[layout.axis] != layout.width:
            raise InvalidValueError(
                f"novelty: '{layout.name}' has {layout.width} features in the fit, got {x.shape[layout.axis]}; fit it "
                "again."
            )
        if layout.axis == 1 and x.ndim > 2 and mask is None and not self.per_position:
            x = x.mean(tuple(range(2, x.ndim)))  # not after the axes are swapped, which copies the feature map
        else:
            x = x.movedim(layout.axis, -1)
        if layout.batch == "second":
            x = x.transpose(0, 1)
        elif layout.batch == "merged":
            if batch is None or x.shape[0] % batch:
                raise InvalidValueError(
                    f"novelty: the output of '{layout.name}' has no axis for the examples, got shape "
                    f"{tuple(tensor.shape)}; leave it out of layers=."
                )
            x = x.reshape(batch, -1, *x.shape[1:])
        if not self.per_position and x.ndim > 2:
            if mask is not None and x.ndim == 3 and mask.shape == x.shape[:2]:  # not over padding
                kept = mask.to(x.dtype).unsqueeze(-1)
                x = (x * kept).sum(1) / kept.sum(1).clamp_min(1)
            else:
                x = x.flatten(1, -2).mean(1)
        return self._folded(x, layout.number, self._width(layout))

    @property
    def _most(self) -> int:
        """The dimensions that wider features are projected to."""
        return sys.maxsize if self.projection is None else DIMENSIONS * self.projection

    def _width(self, layout: Layout) -> int:
        """The dimensions that a layer keeps until all are joined: all its own, but where each has very many rows."""
        most = self._most
        if self.joint:
            if not self.per_position or sum(other.width for other in self.layouts) <= most:
                return layout.width
            most = max(most // DIMENSIONS, most // len(self.layouts))
        return min(layout.width, most)

    def _folded(self, x: Tensor, number: int, most: int) -> Tensor:
        if x.shape[-1] <= most:
            return x
        key = (number, x.device)
        if key not in self._signs:
            self._signs[key] = random_signs(self.seed, number, x.shape[-1]).to(x.device)
        return folded(x, self._signs[key], most)

    def _spread(self, number: int, x: Tensor, positions: torch.Size) -> Tensor:
        """The features (b, ..., k) of some examples at the positions of the output, as rows."""
        own, layout = x.shape[1:-1], self.layouts[number]
        if own != positions:
            if layout.batch == "merged" and len(own) > 1 and own[:1] == positions:
                x = x.flatten(2, -2).mean(2)
            elif layout.batch != "merged" and len(own) == len(positions) and (layout.axis == 1 or len(own) > 1):
                pool: Any = (F.adaptive_avg_pool1d, F.adaptive_avg_pool2d, F.adaptive_avg_pool3d)[len(own) - 1]
                x = pool(x.movedim(-1, 1), tuple(positions)).movedim(1, -1)
            else:
                x = x.flatten(1, -2).mean(1) if own else x
                x = x.view(x.shape[0], *(1 for _ in positions), x.shape[-1]).expand(-1, *positions, -1)
        return x if x.ndim == 2 else x.reshape(-1, x.shape[-1])


@torch.no_grad()
def mean_output(verb: str, model: nn.Module, inputs: Inputs, output: OutputSelector | None) -> Tensor:
    """The output of the network at the posterior means, in evaluation mode and without torch.compile."""
    with ExitStack() as stack:
        if is_compiled(model):  # a compiled forward does not run hooks that are new
            stack.enter_context(torch.compiler.set_stance("force_eager"))
        stack.enter_context(evaluating(model))
        stack.enter_context(mean_mode(model))
        return forward(verb, model, inputs, output).detach()


def home(device: torch.device) -> torch.device:
    """The device that computes in float64 for another one; Apple's has no float64."""
    return torch.device("cpu") if device.type == "mps" else device


def _examples(inputs: Inputs) -> int | None:
    """Axis 0 of the first tensor that has one."""
    items = inputs.values() if isinstance(inputs, Mapping) else inputs if isinstance(inputs, tuple) else (inputs,)
    return next((item.shape[0] for item in items if isinstance(item, Tensor) and item.ndim), None)


def _mean_of_calls(calls: list[Tensor]) -> Tensor:
    """The features of a layer that one forward calls several times."""
    if any(tensor.shape != calls[0].shape for tensor in calls):
        calls = [tensor.flatten(1, -2).mean(1) if tensor.ndim > 2 else tensor for tensor in calls]
    return calls[0] if len(calls) == 1 else torch.stack(calls).mean(0)
