"""The two passes of ``fit_novelty``: what they sum up, and the novelty that comes out."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InvalidValueError
from ..fingerprints import network_fingerprint
from ..likelihoods import Likelihood
from ..models.batches import Inputs, Unpack, device_of, first_examples, read_batches
from ..models.outputs import OutputSelector
from ..models.ranks import failing_together, from_every_process, own_rank
from .classes import ClassTable, bin_edges, class_codes, target_values, term_shape
from .distance import RelativeDistance, location_and_scale, varies
from .features import FeatureReader, home, mean_output
from .heldout import HeldoutTerms, heldout_codes
from .layouts import chosen_layouts
from .moments import Moments
from .scoring import Novelty, terms_of

__all__ = ["NoveltyFit", "Progress"]

#: Held-out terms below which a warning says that p-values are coarse.
FEW = 20
#: Most bytes for the class means of all layers.
MOST_BYTES = 2**30


class Progress:
    """Counts batches."""

    def __init__(self, report: Callable[[int, int | None], None] | None, *loaders: Any) -> None:
        self._report, self._done = report, 0
        self._total = sum(map(len, loaders)) if all(isinstance(loader, Sized) for loader in loaders) else None

    def count(self) -> None:
        """One more batch is done."""
        self._done += 1
        if self._report is not None:
            self._report(self._done, self._total)


class NoveltyFit:
    """The state of one fit."""

    def __init__(
        self,
        model: nn.Module,
        likelihood: Likelihood,
        layers: str | Sequence[str],
        projection: int | None,
        joint: bool,
        seed: int,
        output: OutputSelector | None,
        unpack: Unpack | None,
    ) -> None:
        self.model, self.likelihood, self.layers, self.projection = model, likelihood, layers, projection
        self.joint, self.seed, self.output, self.unpack, self.device = joint, seed, output, unpack, device_of(model)
        self.classes = ClassTable()
        self.reader: FeatureReader | None = None
        self.moments: list[Moments] = []

    def edges(self, loader: Iterable[Any]) -> Tensor:
        """The edges of the bins of a regression, from the targets of all processes."""
        with failing_together("fit_novelty"):
            own = [target_values(_required(t, i)) for i, (_, t) in enumerate(self._batches(loader))]
        values = [v for v in from_every_process(torch.cat(own) if own else None) if v is not None]
        return bin_edges(torch.cat(values)) if values else torch.zeros(0, dtype=torch.float64)

    def learn(self, loader: Iterable[Any], edges: Tensor | None, done: Progress) -> None:
        """The pass over the training data."""
        with failing_together("fit_novelty"):
            for index, (inputs, target) in enumerate(self._batches(loader)):
                _required(target, index)
                if self.reader is None:
                    self._start(inputs)
                assert self.reader is not None
                raw, features = self.reader.read("fit_novelty", self.model, inputs, self.output)
                _check_finite(self.reader, raw, features, f"batch {index} of loader")
                self.likelihood.check(raw)
                codes, kept = class_codes(self.likelihood, raw, target, edges)
                self._add(raw, features, codes, kept)
                done.count()
            if self.reader is None:
                raise InvalidValueError("fit_novelty: loader must give at least one batch, got none.")

    def _start(self, inputs: Inputs) -> None:
        """Choose the layers by a trial forward of the first batch."""
        shape = torch.Size()

        def forward(most: int | None) -> int:
            nonlocal shape
            given = inputs if most is None else first_examples(inputs, most)
            shape = term_shape(self.likelihood, mean_output("fit_novelty", self.model, given, self.output))
            return shape[0]

        layouts = chosen_layouts(self.model, self.layers, forward)
        self.reader = FeatureReader(layouts, self.projection, self.seed, len(shape) > 1, self.joint)
        self.moments = [Moments(size) for size in self.reader.sizes]

    def _add(self, raw: Tensor, features: list[Tensor], codes: Tensor, kept: Tensor) -> None:
        assert self.reader is not None
        numbers = self.classes.numbers(codes[kept])
        count = len(self.classes.codes)
        needed = 8 * count * sum(self.reader.sizes)
        if needed > MOST_BYTES:
            raise InvalidValueError(
                f"fit_novelty: the means of {count} classes must take at most "
                f"{MOST_BYTES:,} bytes, got {needed:,}; name fewer layers, or use a smaller projection."
            )
        every = torch.full((len(codes),), -1, dtype=torch.long)
        every[kept.cpu()] = numbers
        shape, terms = terms_of(self.reader, self.likelihood, raw, features)
        every = every.view(shape)
        for part, rows, _ in terms:
            own = every[part].flatten()
            for moments, values in zip(self.moments, rows, strict=True):
                moments.add(values[(own >= 0).to(values.device)], own[own >= 0], count)

    def finish(self, val_loader: Iterable[Any], done: Progress) -> Novelty:
        """The Gaussians of all processes, and the pass over the held-out data."""
        counts = from_every_process((self.classes.codes, self.classes.counts))
        codes = sorted({code for own, _ in counts for code in own})
        num_data = int(sum(float(own.sum()) for _, own in counts))
        if len(codes) < 2:
            raise InvalidValueError(
                f"fit_novelty: loader must have two classes or more, got {f'class {codes[0]}' if codes else 'none'} in "
                f"all {num_data} terms; a distance relative to the classes needs them."
            )
        places = torch.tensor([codes.index(code) for code in self.classes.codes], dtype=torch.long)
        found = [m.statistics(self.classes.counts, places, len(codes)) for m in self.moments]
        distances = self._varying([RelativeDistance.of(s, self.projection) if varies(s) else None for s in found])
        values, digest = self._heldout(val_loader, distances, done)
        return self._made(distances, values, digest, num_data)

    def _varying(self, distances: list[RelativeDistance | None]) -> list[RelativeDistance]:
        """The distances of the layers that vary over the training data."""
        assert self.reader is not None
        layouts = self.reader.layouts
        names = [", ".join(layout.name for layout in layouts)] if self.joint else [layout.name for layout in layouts]
        constant = [name for name, d in zip(names, distances, strict=True) if d is None]
        left = [d for d in distances if d is not None]
        if constant and (self.layers != "all" or not left):
            raise InvalidValueError(
                f"fit_novelty: the outputs of {', '.join(map(repr, constant))} do not vary, got one value for all "
                "training data; leave these layers out of layers=."
            )
        if constant:
            warnings.warn(
                f"fit_novelty: {', '.join(map(repr, constant))} left out, because their outputs do not vary.",
                UserWarning,
                stacklevel=4,
            )
            self.reader = self.reader.without(constant)
        return left

    def _heldout(
        self, val_loader: Iterable[Any], distances: list[RelativeDistance], done: Progress
    ) -> tuple[Tensor, str]:
        """Distances and energies of held-out terms, (n, L) or (n, L + 1), and a digest of their targets."""
        assert self.reader is not None
        terms = HeldoutTerms(torch.Generator().manual_seed(self.seed + own_rank()))
        with failing_together("fit_novelty"):
            for index, (inputs, target) in enumerate(self._batches(val_loader)):
                raw, features = self.reader.read("fit_novelty", self.model, inputs, self.output)
                _check_finite(self.reader, raw, features, f"batch {index} of val_loader")
                shape, parts = terms_of(self.reader, self.likelihood, raw, features)
                codes, kept = heldout_codes(self.likelihood, raw, target, shape)
                for part, rows, energy in parts:
                    found = [d.distance(r) for d, r in zip(distances, rows, strict=True)]
                    values = torch.stack([*found, *([] if energy is None else [energy])], 1)
                    own = kept[part].flatten().cpu()
                    terms.add(values.cpu()[own], codes[part].flatten().cpu()[own])
                done.count()
        values, digest = terms.gathered()
        if len(values) < 2:
            raise InvalidValueError(
                f"fit_novelty: val_loader must hold at least two held-out terms, got {len(values)}; p-values "
                "count them."
            )
        return values, digest

    def _made(self, distances: list[RelativeDistance], values: Tensor, digest: str, num_data: int) -> Novelty:
        """The novelty, standardised by the held-out values."""
        assert self.reader is not None
        values = values.to(home(self.device))
        if len(values) < FEW:
            warnings.warn(
                f"fit_novelty: {len(values)} held-out terms give p-values of 1/{len(values) + 1} = "
                f"{1 / (len(values) + 1):.2g} and above, so nothing is rejected at level 0.05; hold out more.",
                UserWarning,
                stacklevel=4,
            )
        columns = list(zip(distances, values.unbind(1), strict=False))
        for distance, column in columns:
            distance.standardise_by(column)
        total = torch.stack([(column - d.location) / d.scale for d, column in columns]).sum(0)
        energy = values[:, len(distances)] if values.shape[1] > len(distances) else None
        pairs = [*location_and_scale(total), *(() if energy is None else location_and_scale(energy))]
        heldout = (total - pairs[0]) / pairs[1]
        if energy is not None:
            heldout = heldout + (energy - pairs[2]) / pairs[3]
        return Novelty(
            self.model, self.reader, distances, self.likelihood, heldout=heldout, standard=torch.stack(pairs),
            num_data=num_data, digests=(network_fingerprint(self.model), digest),
            output=self.output, unpack=self.unpack,
        ).to(home(self.device))  # fmt: skip

    def _batches(self, loader: Iterable[Any]) -> Iterator[tuple[Inputs, Any]]:
        return read_batches(loader, self.unpack, self.device, self.model)


def _required(target: Any, index: int) -> Any:
    """The target of a training batch, which must have one."""
    if target is None:
        raise InvalidValueError(
            f"fit_novelty: loader must give targets, got none in batch {index}; the classes come from them. Pass "
            "unpack= if they are there under another name."
        )
    return target


def _check_finite(reader: FeatureReader, raw: Tensor, features: list[Tensor], where: str) -> None:
    """Raise for the first layer whose features are not finite, or if the outputs are not."""
    named = [*((repr(layout.name), x) for layout, x in zip(reader.layouts, features, strict=True)), ("the model", raw)]
    fine = torch.stack([x.isfinite().all() for _, x in named])
    if not bool(fine.all()):
        name, x = named[int(fine.int().argmin())]
        raise InvalidValueError(
            f"fit_novelty: outputs of {name} must be finite, got {int((~x.isfinite()).sum())} of {x.numel()} values "
            f"that are not in {where}; look at the inputs and at half precision."
        )
