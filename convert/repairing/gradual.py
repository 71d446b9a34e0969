"""``prune_and_repair``: weights are removed a part at a time, and after each part the rest is repaired.

At every step the same factor of the weights that are left stays. What a step damages is small enough to be solved for,
and the scores of the next one are those of the repaired network.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Iterable, Iterator, Mapping, Sized
from dataclasses import dataclass
from typing import Any, Generic, TypeVar

import torch
from torch import nn

from bensemble.checks import check_count, check_module, check_number
from bensemble.errors import InvalidValueError
from bensemble.likelihoods import Likelihood, required
from bensemble.models.batches import Unpack, check_loader
from bensemble.models.outputs import OutputSelector
from bensemble.posteriors import is_bayesian
from bensemble.pruning.channels import ChannelGroups
from bensemble.pruning.criteria import check_granularity, matrices
from bensemble.pruning.masks import pruning_masks
from bensemble.pruning.patterns import is_pattern
from bensemble.tables import Printed, text_table

from ..planning.copying import check_unmasked
from ..scoring import ExpectedLoss, prune_scores
from ..scoring.loss import HeldOut
from ..surgery import bayesify, to_deterministic
from .repair import repair

__all__ = ["PruneStep", "Pruned", "prune_and_repair"]

M = TypeVar("M", bound=nn.Module)
Share = float | Mapping[str, float] | None

#: Damping of the scores. A repair makes up for more of what the curvature says than of what it leaves out.
DAMPING = 1.0
#: The share of the weights left that stays in each step of ``"auto"``, and the most steps.
FACTOR, MOST = 0.7, 20
#: What ``"auto"`` may lose, with its standard error: accuracy, or nats where there are no classes.
ALLOWED = 0.003


@dataclass(frozen=True)
class PruneStep:
    """One step.

    Attributes:
        sparsity: Share of the weights, without biases, that are zero after it.
        loss: What the network lost so far, on the last tenth of the batches.
        kept: Whether the step is part of the result; ``"auto"`` takes back what loses too much.

    Example:
        >>> shares = [step.sparsity for step in convert.prune_and_repair(model, loader, sparsity=0.5, steps=2).steps]
    """

    sparsity: float
    loss: ExpectedLoss
    kept: bool = True


@dataclass(frozen=True, repr=False)
class Pruned(Printed, Generic[M]):
    """A pruned and repaired network, and how it came to be; prints as a table.

    Attributes:
        network: A plain network with zeros.
        steps: What was done, in order.

    Example:
        >>> network = convert.prune_and_repair(model, loader, sparsity=0.5, steps=1).network
    """

    network: M
    steps: tuple[PruneStep, ...]

    @property
    def sparsity(self) -> float:
        """Share of the weights, without biases, that are zero."""
        return max((step.sparsity for step in self.steps if step.kept), default=0.0)

    @property
    def loss(self) -> ExpectedLoss | None:
        """What the network is expected to lose; None if nothing was removed."""
        return next((step.loss for step in reversed(self.steps) if step.kept), None)

    def __str__(self) -> str:
        rows = [("removed", "accuracy lost", "±", "nats", "")]
        for step in self.steps:
            loss = step.loss
            drop = "" if loss.drop != loss.drop else f"{loss.drop:.2%}"
            unseen = max(loss.standard_error, 1 / loss.num_terms)  # of n terms no smaller share can be told
            error = f"{unseen:.2%}" if drop else f"{loss.standard_error:.2g}"
            rows.append((f"{step.sparsity:.1%}", drop, error, f"{loss.nats:.3g}", "" if step.kept else "taken back"))
        terms = f" on {self.steps[0].loss.num_terms:,} held-out terms" if self.steps else ""
        head = f"{self.sparsity:.1%} of the weights removed and the rest repaired; expected to lose{terms}:"
        if self.steps and not any(step.kept for step in self.steps):
            head = f"Nothing removed: each step is expected to lose too much{terms}; give a share, or shares of layers:"
        return "\n".join([head, *text_table(rows, right=range(4), indent="  ")])

    __repr__ = __str__


def prune_and_repair(
    model: M,
    loader: Iterable[Any],
    *,
    sparsity: float | Mapping[str, float] | str | None = None,
    granularity: str | ChannelGroups = "weight",
    steps: int | None = None,
    score: str = "obd",
    likelihood: Likelihood | str = "categorical",
    output: OutputSelector | None = None,
    unpack: Unpack | None = None,
    generator: torch.Generator | None = None,
    progress: Callable[[PruneStep], None] | None = None,
) -> Pruned[M]:
    """Prune a trained network without training or labels: remove a part, :func:`convert.repair`, and again.

    The weights left fall by the same factor in every step. The last tenth of the batches says what was lost; give
    inputs that the network was not trained on where there are some, because on its training data it looks better.

    Args:
        model: A plain network, or a Bayesian one, of which the means count.
        loader: Batches of inputs, read several times; not shuffled; targets are not used. 2,000 inputs are enough for
            a small network; a larger one loses less by more of them, and ``"auto"`` knows better what is lost.
        sparsity: The share to remove at last, or a mapping with shares of layers, as in :func:`bensemble.prune`. Or
            ``"auto"``: go on until the expected loss and its standard error are above .3 points of accuracy, .003 nats
            where there are no classes, then take the last step back and try half of it.
        granularity: ``"weight"``, ``"channel"``, channel groups, or ``"2:4"`` without ``sparsity``, which is one step
            for each weight of the pattern that goes.
        steps: How many. Default: 5, and 10 for channels, whose losses add up less well. ``"auto"`` and patterns have
            their own number.
        score: ``"obd"`` or ``"magnitude"``, see :func:`convert.prune_scores`.
        likelihood: What the outputs mean.
        output: Which part of a structured output.
        unpack: ``callable(batch) -> (inputs, target)``.
        generator: Source of all randomness. Default: one with seed 0 for every part.
        progress: Called with each step.

    Returns:
        The network as ``network``, and its steps with what they are expected to lose.

    Raises:
        InvalidTypeError, InvalidValueError: An argument cannot work.
        ConversionError: The model cannot be converted or copied.

    Example:
        >>> pruned = convert.prune_and_repair(model, loader, sparsity=0.9)
        >>> print(pruned)
        >>> small = convert.compact(pruned.network, x)
    """
    if steps is None:
        steps = 5 if granularity == "weight" else 10
    _check(model, loader, sparsity, granularity, steps, score)
    dense: Any = to_deterministic(model) if is_bayesian(model) else model
    heldout = HeldOut("prune_and_repair", dense, required("prune_and_repair", likelihood), output)
    with torch.random.fork_rng(devices=[]):  # a DataLoader draws a seed when it starts
        for _ in heldout.splitting(loader, len(loader) if isinstance(loader, Sized) else None, unpack):
            pass  # what is held out stays in memory
    if heldout.is_seen:
        warnings.warn(
            "prune_and_repair: loader gives too few batches to hold one out, so what is lost looks smaller; give ten.",
            stacklevel=2,
        )
    network, done = dense, list[PruneStep]()
    for share, unit in _schedule(sparsity, granularity, steps, done):
        bnn = bayesify(network)
        if not matrices(bnn):
            raise InvalidValueError(
                "prune_and_repair: model must have weights that can go, got none; see convert.plan."
            )
        scores = prune_scores(
            bnn, loader, score=score, damping=DAMPING, likelihood=likelihood, output=output, unpack=unpack,
            generator=generator,
        )  # fmt: skip
        masks = pruning_masks(bnn, sparsity=share, granularity=unit, scores=scores)
        after = repair(to_deterministic(bnn, masks=masks), dense, loader, unpack=unpack, generator=generator)
        loss = heldout.loss(after)
        kept = sparsity != "auto" or _allowed(loss)
        done.append(PruneStep(_zeros(after, matrices(bnn)), loss, kept))
        if progress is not None:
            progress(done[-1])
        network = after if kept else network
    if network is model:
        network = to_deterministic(bayesify(model))  # a copy, as ever
    return Pruned(network, tuple(done))


def _schedule(
    sparsity: Any, granularity: Any, steps: int, done: list[PruneStep]
) -> Iterator[tuple[Share, str | ChannelGroups]]:
    """The share and the unit of every step; ``done`` holds the steps before."""
    if is_pattern(granularity):
        keep, of = map(int, granularity.split(":"))
        yield from ((None, f"{left}:{of}") for left in range(of - 1, keep - 1, -1))
    elif sparsity == "auto":
        left = 1.0
        while len(done) < MOST:
            yield 1 - left * FACTOR, granularity
            if not done[-1].kept:
                yield 1 - left * FACTOR**0.5, granularity
                return
            left *= FACTOR
    else:
        for step in range(1, steps + 1):
            if isinstance(sparsity, Mapping):
                yield {name: 1 - (1 - share) ** (step / steps) for name, share in sparsity.items()}, granularity
            else:
                yield 1 - (1 - sparsity) ** (step / steps), granularity


def _allowed(loss: ExpectedLoss) -> bool:
    return (loss.nats if loss.drop != loss.drop else loss.drop) + loss.standard_error <= ALLOWED


def _zeros(network: nn.Module, counted: Iterable[str]) -> float:
    """The share of zeros among the weights that a share counts."""
    parameters = dict(network.named_parameters(remove_duplicate=False))
    weights = [parameters[name] for name in counted]
    return sum(int((weight == 0).sum()) for weight in weights) / max(sum(weight.numel() for weight in weights), 1)


def _check(model: Any, loader: Any, sparsity: Any, granularity: Any, steps: Any, score: Any) -> None:
    check_unmasked("prune_and_repair", check_module("prune_and_repair", model))
    check_loader("prune_and_repair", loader, again=True)
    check_granularity(granularity)
    if is_pattern(granularity) != (sparsity is None):
        raise InvalidValueError(
            "prune_and_repair: either sparsity or a granularity such as '2:4' must say how much goes, got "
            f"sparsity={sparsity!r} and granularity={granularity!r}."
        )
    if isinstance(sparsity, str) and sparsity != "auto":
        raise InvalidValueError(f"prune_and_repair: sparsity must be a share, a mapping or 'auto', got {sparsity!r}.")
    if isinstance(sparsity, Mapping):
        for name, share in sparsity.items():
            check_number("prune_and_repair", f"sparsity of {name!r}", share, least=0, below=1)
    elif sparsity is not None and sparsity != "auto":
        check_number("prune_and_repair", "sparsity", sparsity, least=0, below=1)
    check_count("prune_and_repair", "steps", steps)
    if score not in ("obd", "magnitude"):
        raise InvalidValueError(
            f"prune_and_repair: score must be 'obd' or 'magnitude', which need no posterior, got {score!r}; by another "
            "one, to_deterministic(scores=) and repair."
        )
