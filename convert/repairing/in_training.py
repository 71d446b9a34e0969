"""``GradualPruning``: weights go a part at a time while the network trains on, by one line in the user's own loop."""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from bensemble.checks import check_count, check_module, check_number
from bensemble.errors import InvalidValueError
from bensemble.likelihoods import Likelihood
from bensemble.models.batches import Unpack, check_loader
from bensemble.models.outputs import OutputSelector
from bensemble.models.state import unwrapped
from bensemble.posteriors import is_bayesian
from bensemble.pruning.masks import prune, pruning_masks
from bensemble.pruning.schedule import gradual_sparsity

from ..planning.copying import check_unmasked, copy_model
from ..scoring import prune_scores
from ..surgery import bayesify
from .repair import repair as repair_network

__all__ = ["GradualPruning"]

#: Damping of the scores by curvature, as in ``prune_and_repair``.
DAMPING = 1.0


class GradualPruning:
    r"""Prunes a network while it trains: call :meth:`step` after every step of the optimizer.

    The share of zeros rises by the cubic of Zhu & Gupta (2017, "To prune, or not to prune", equation 1) from the first
    step on, in ``updates`` jumps, and is reached at the share ``end`` of the steps; the rest is recovery. Weights that
    were removed are set back to zero after every step, so any optimizer will do; afterwards the network is a plain one
    with zeros, ready for ``convert.compact`` and ``export_onnx``.

    Args:
        model: The network in training, changed in place: a plain one, or a Bayesian one, which gets masks.
        sparsity: Share of the weights to remove in all, biases neither removed nor counted.
        steps: Steps of the whole training, epochs times batches.
        score: What goes first, see :func:`convert.prune_scores`: ``"magnitude"``, ``"obd"``, which needs ``loader``, or
            of a Bayesian model ``"snr"`` or ``"evidence"``.
        loader: Batches of inputs, read at every jump; 1,000 inputs are enough.
        repair: Whether after every jump the weights left are solved for what the network computed before it, see
            :func:`convert.repair`. For a plain network; needs ``loader``.
        floor: Share of every weight tensor that stays, at least one weight: no layer is cut off.
        updates: How many jumps.
        end: Share of the steps at which ``sparsity`` is reached.
        likelihood: What the outputs mean; ``"obd"`` uses it.
        output: Which part of a structured output.
        unpack: ``callable(batch) -> (inputs, target)``.
        generator: Source of all randomness. Default: one with seed 0 at every jump.

    Raises:
        InvalidTypeError, InvalidValueError: An argument cannot work; or the floors leave less than ``sparsity`` to go.
        ConversionError: The model has no weights that can be pruned, or cannot be copied.

    Example:
        >>> pruning = convert.GradualPruning(model, sparsity=0.9, steps=len(loader))
        >>> for batch, target in loader:
        ...     optimizer.zero_grad()
        ...     F.cross_entropy(model(batch), target).backward()
        ...     optimizer.step()
        ...     pruning.step()
    """

    def __init__(
        self,
        model: nn.Module,
        *,
        sparsity: float,
        steps: int,
        score: str = "magnitude",
        loader: Iterable[Any] | None = None,
        repair: bool = False,
        floor: float = 0.005,
        updates: int = 10,
        end: float = 0.75,
        likelihood: Likelihood | str = "categorical",
        output: OutputSelector | None = None,
        unpack: Unpack | None = None,
        generator: torch.Generator | None = None,
    ) -> None:
        check_unmasked("GradualPruning", check_module("GradualPruning", model))
        check_number("GradualPruning", "sparsity", sparsity, least=0, below=1)
        check_number("GradualPruning", "floor", floor, least=0, below=1)
        check_number("GradualPruning", "end", end, above=0, most=1)
        check_count("GradualPruning", "steps", steps)
        check_count("GradualPruning", "updates", updates)
        bayesian = is_bayesian(model)
        if repair and (loader is None or bayesian):
            what = "a Bayesian model" if bayesian else "no loader"
            raise InvalidValueError(f"GradualPruning: repair=True needs a plain network and loader, got {what}.")
        if loader is not None:
            check_loader("GradualPruning", loader, again=True)
        self.model, self.sparsity, self.steps = unwrapped(model), float(sparsity), int(steps)
        self._score, self._loader, self._floor, self._repair = score, loader, floor, repair
        self._reading: dict[str, Any] = {"likelihood": likelihood, "output": output, "unpack": unpack}
        self._jumps = {math.ceil(number * end * steps / updates) for number in range(1, updates + 1)}
        self._end, self._bayesian, self._generator, self._done = end, bayesian, generator, 0
        self._masks: dict[str, Tensor] = {}
        self._check_floors(self._scores())

    @property
    def removed(self) -> float:
        """The share of the weights that is to be zero by now."""
        jumps = [jump for jump in self._jumps if jump <= self._done]
        return gradual_sparsity(max(jumps, default=0), self.steps, self.sparsity, 0.0, self._end)

    @torch.no_grad()
    def step(self) -> None:
        """After a step of the optimizer: what was removed is zero again, and at a jump more goes."""
        self._done += 1
        if self._done in self._jumps:
            self._remove()
        self._zero()

    def _zero(self) -> None:
        parameters = dict(self.model.named_parameters(remove_duplicate=False))
        for name, mask in self._masks.items():
            parameters[name].mul_(mask.to(parameters[name]))

    def _remove(self) -> None:
        """Remove what the schedule asks for by now, and repair the rest where asked."""
        scores = self._scores()
        if self._bayesian:
            prune(self.model, sparsity=self.removed, scores=scores)
            return
        before = copy_model("GradualPruning", self.model) if self._repair else None
        self._masks = pruning_masks(bayesify(self.model), sparsity=self.removed, scores=scores)
        self._zero()
        if before is not None and self._loader is not None:
            unpack = self._reading["unpack"]
            found = repair_network(self.model, before, self._loader, unpack=unpack, generator=self._generator)
            self.model.load_state_dict(found.state_dict())

    def _scores(self) -> dict[str, Tensor]:
        """The scores of all weights, infinite for those that a floor keeps."""
        found = prune_scores(
            self.model, self._loader, score=self._score, damping=DAMPING, generator=self._generator, **self._reading
        )
        for name, score in found.items():
            flat = score.flatten()
            kept = flat.topk(max(1, round(self._floor * flat.numel()))).indices
            found[name] = flat.index_fill(0, kept, torch.inf).view_as(score)
        return found

    def _check_floors(self, scores: dict[str, Tensor]) -> None:
        total = sum(score.numel() for score in scores.values())
        kept = sum(int(score.isinf().sum()) for score in scores.values())
        if not total:
            raise InvalidValueError("GradualPruning: model must have weights that can be pruned, got none.")
        if self.sparsity * total > total - kept:
            raise InvalidValueError(
                f"GradualPruning: sparsity must leave every layer its floor, {kept:,} of {total:,} weights, got "
                f"{self.sparsity:g}; lower sparsity or floor."
            )
