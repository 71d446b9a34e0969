"""The way through a network: which weights see the same inputs, and what they see, batch by batch.

Both networks run only as far as the weights that are looked at; nothing is kept but one batch.
"""

from __future__ import annotations

import weakref
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from typing import Any

from torch import Tensor, nn

from bensemble.errors import InvalidValueError
from bensemble.models.batches import Unpack, call, check_finite_inputs, device_of, split_batch, to_device
from bensemble.models.forwards import naming_batch
from bensemble.models.state import calling_modules

from ..scoring.loss import in_last_tenth
from .beside import Beside, Enough, lost_beside
from .layers import Layer, Use
from .weighing import position_weights

__all__ = ["Job", "Pair", "Walk"]


@dataclass(frozen=True)
class Job:
    """One weight with all the layers that use it."""

    layers: tuple[Layer, ...]

    @property
    def label(self) -> str:
        """What to call it in a report."""
        return self.layers[0].label


@dataclass(frozen=True)
class Pair:
    """One use of a weight in one batch.

    Attributes:
        job: The weight.
        layer: The layer that used it.
        pruned: Inputs in the pruned network.
        original: Inputs and outputs in the original.
        targets: Its outputs, and what the pruned network lost of what is added to them.
        is_heldout: Whether the batch belongs to the last tenth.
        weights: What each position of a sequence counts; None where all count alike.
    """

    job: Job
    layer: Layer
    pruned: Tensor
    original: Use
    targets: Tensor
    is_heldout: bool
    weights: Tensor | None = None


class Walk:
    """The batches of a loader in two networks.

    Args:
        pruned: The network to repair; it may change between passes.
        original: The network before pruning.
        loader: Batches, the same number in every pass.
        unpack: ``callable(batch) -> (inputs, target)``.
    """

    def __init__(self, pruned: nn.Module, original: nn.Module, loader: Iterable[Any], unpack: Unpack | None) -> None:
        self._pruned, self._original, self._loader, self._unpack = pruned, original, loader, unpack
        self._num_batches = len(loader) if isinstance(loader, Sized) else None
        self._uses: Counter[str] = Counter()

    def groups(self, jobs: Sequence[Job]) -> list[list[Job]]:
        """The jobs that a forward reaches, in the order of their first use; those with the same inputs together."""
        owners = {layer.label: job for job in jobs for layer in job.layers}
        order: dict[str, tuple[Job, weakref.ref[Tensor]]] = {}
        inputs = next(self._batches(), None)
        if inputs is None:
            raise InvalidValueError("repair: loader must give batches in every pass, got none; pass a DataLoader.")

        def count(layer: Layer, use: Use) -> None:
            job = owners[layer.label]
            self._uses[layer.label] += 1
            order.setdefault(job.label, (job, weakref.ref(use[0])))

        self._run(self._original, inputs, [layer for job in jobs for layer in job.layers], count)
        found: list[list[Job]] = []
        firsts: list[weakref.ref[Tensor]] = []
        for job, seen in order.values():
            same = next((i for i, first in enumerate(firsts) if first() is not None and first() is seen()), None)
            if same is None:
                found.append([job])
                firsts.append(seen)
            else:
                found[same].append(job)
        return found

    def passing(self, jobs: Sequence[Job]) -> Iterator[Pair]:
        """What the jobs see in one pass over the loader."""
        owners = {layer.label: job for job in jobs for layer in job.layers}
        layers = [layer for job in jobs for layer in job.layers]
        for index, inputs in enumerate(self._batches()):
            pruned, original = self._copies(self._pruned, inputs, layers), self._copies(self._original, inputs, layers)
            if [layer for layer, *_ in pruned] != [layer for layer, *_ in original]:
                raise InvalidValueError(
                    f"repair: both networks must use '{jobs[0].label}' equally often, got {len(pruned)} and "
                    f"{len(original)} uses; a network that chooses its way by its weights cannot be repaired."
                )
            weights = self._weights(
                inputs, {layer for layer, use, _ in original if layer.features_last and use[1].ndim > 2}
            )
            for (layer, (seen, _), now), (_, use, before) in zip(pruned, original, strict=True):
                targets = use[1] + lost_beside(now, before)
                given = weights.get(layer.label)
                last = in_last_tenth(index, self._num_batches)
                yield Pair(owners[layer.label], layer, seen, use, targets, last, given.pop(0) if given else None)

    def _batches(self) -> Iterator[Any]:
        device = device_of(self._original)
        for batch in self._loader:
            inputs = split_batch(batch, self._unpack)[0]
            check_finite_inputs("repair", inputs)
            yield to_device(inputs, device)

    def _copies(
        self, network: nn.Module, inputs: Any, layers: Sequence[Layer]
    ) -> list[tuple[Layer, Use, tuple[Tensor | None, Tensor | None]]]:
        """What some layers see in one forward and what is added to that, safe from operations in place.

        The forward ends after the last of them.
        """
        found: list[tuple[Layer, Use]] = []
        beside = Beside(sum(self._uses[layer.label] for layer in layers))

        def see(layer: Layer, use: Use) -> None:
            found.append((layer, (use[0].clone(), use[1].clone())))
            beside.watch(use[1], layer.is_used)

        with suppress(Enough), beside:
            self._run(network, inputs, layers, see)
        return [(layer, use, other) for (layer, use), other in zip(found, beside.found, strict=True)]

    def _weights(self, inputs: Any, layers: set[Layer]) -> dict[str, list[Tensor | None]]:
        if not layers:
            return {}
        with calling_modules():
            return position_weights(self._original, lambda: call(self._original, inputs), layers)

    def _run(self, network: nn.Module, inputs: Any, layers: Sequence[Layer], see: Callable[[Layer, Use], None]) -> None:
        """One forward, in which every use of a layer is shown."""

        def watch(layer: Layer) -> Any:
            def hook(module: nn.Module, args: Any, kwargs: Any, output: Any) -> None:
                see(layer, layer.seen(module, args, kwargs, output))

            return hook

        with ExitStack() as stack:
            stack.enter_context(calling_modules())
            for layer in layers:
                handle = network.get_submodule(layer.path).register_forward_hook(watch(layer), with_kwargs=True)
                stack.callback(handle.remove)
            with naming_batch("repair", network, inputs):
                call(network, inputs)
