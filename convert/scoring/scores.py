r"""``prune_scores``: what each weight is worth, for ``prune(scores=)`` and ``to_deterministic(scores=)``.

With h the mean diagonal curvature of a term and :math:`\bar h` its mean over the network, removing a weight costs about
:math:`w^2 h / 2` nats (LeCun, Denker & Solla 1990, "Optimal Brain Damage"). Far from the optimum of a quadratic that is
too sure of itself, so ``"obd"`` is :math:`w^2 (h + d\,\bar h)`. That is SNR² with one prior width for the whole network
in place of one for each tensor (Dhahri et al. 2024, "Shaving Weights with Occam's Razor"). A large damping d gives the
order of the magnitudes.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sized
from typing import Any

import torch
from torch import Tensor, nn

from bensemble.checks import check_module, check_number
from bensemble.errors import InvalidValueError
from bensemble.fitting.curvature import diagonal_curvature
from bensemble.gaussian import precise
from bensemble.likelihoods import Likelihood, required
from bensemble.models.batches import Unpack, check_loader
from bensemble.models.outputs import OutputSelector
from bensemble.models.sharding import check_in_one_process
from bensemble.models.state import evaluating
from bensemble.posteriors import is_bayesian
from bensemble.pruning.criteria import matrices
from bensemble.pruning.masks import pruning_masks

from ..planning.copying import copy_model
from ..surgery import bayesify, to_deterministic
from .loss import HeldOut

__all__ = ["prune_scores"]

#: What the damping of OBD is chosen from; at the last one the order is that of the magnitudes.
DAMPINGS = (0.1, 1.0, 10.0, 100.0, float("inf"))
SCORES = ("obd", "magnitude", "snr", "evidence")


def prune_scores(
    model: nn.Module,
    loader: Iterable[Any] | None = None,
    *,
    score: str = "obd",
    sparsity: float = 0.9,
    damping: float | None = None,
    likelihood: Likelihood | str = "categorical",
    output: OutputSelector | None = None,
    unpack: Unpack | None = None,
    generator: torch.Generator | None = None,
    progress: Callable[[int, int | None], None] | None = None,
) -> dict[str, Tensor]:
    r"""What each weight is worth; those with the lowest scores go first. The model is not changed, labels are not used.

    Args:
        model: A plain network, or a Bayesian one. Weights that ``sparsity`` would prune get a score: no biases.
        loader: Batches of inputs, read once; only ``"obd"`` needs them.
        score: ``"obd"``, :math:`w^2 (h + d\,\bar h)`, see the top of this module. ``"magnitude"``, :math:`|w|`.
            Of a fitted or trained posterior, ``"snr"``, :math:`|\mu| / \sigma`, what is used without scores; and
            ``"evidence"``, :math:`SNR^2 / 2 - \ln(s / \sigma)`, the evidence for the weight in nats, negative where the
            data prefers 0 (Savage-Dickey), with :math:`s^2` the mean of :math:`\mu^2 + \sigma^2` over the network.
        sparsity: The share that shall be removed, for which ``damping`` is chosen.
        damping: d of ``"obd"``. Default: of several values up to infinity, where the order is that of the magnitudes,
            the one that loses least on the last tenth of the batches, see :mod:`convert.scoring.loss`, without a
            repair. Before a repair 1 is a good value.
        likelihood: What the outputs mean; ``"obd"`` uses it.
        output: Which part of a structured output.
        unpack: ``callable(batch) -> (inputs, target)``.
        generator: Chooses the random vectors of the curvature. Default: one with seed 0.
        progress: Called with (batches done, number of batches or None).

    Returns:
        Scores by original parameter name, in the shapes of the weights, float32 or float64.

    Raises:
        InvalidTypeError, InvalidValueError: An argument cannot work, or a score needs a posterior or a loader.
        ConversionError: The model cannot be made Bayesian.

    Example:
        >>> scores = convert.prune_scores(model, loader, sparsity=0.9)
        >>> pruned = convert.to_deterministic(convert.bayesify(model), sparsity=0.9, scores=scores)
    """
    _check(model, loader, score, sparsity, damping)
    if score == "obd":
        assert loader is not None
        resolved = required("prune_scores", likelihood)
        return _damaged(model, loader, resolved, sparsity, damping, output, unpack, generator, progress)
    posteriors = matrices(model if is_bayesian(model) else bayesify(model))
    with torch.no_grad():
        if score == "magnitude":
            return {name: precise(p.mean()).abs() for name, p in posteriors.items()}
        ratios = {name: p.snr() for name, p in posteriors.items()}
        if score == "snr":
            return ratios
        total = sum(float((precise(p.mean()).square() + p.variance()).double().sum()) for p in posteriors.values())
        width = (total / max(sum(p.mu.numel() for p in posteriors.values()), 1)) ** 0.5
        return {name: ratios[name].square() / 2 - (width / p.sigma()).log() for name, p in posteriors.items()}


def _check(model: Any, loader: Any, score: Any, sparsity: Any, damping: Any) -> None:
    check_module("prune_scores", model)
    if score not in SCORES:
        raise InvalidValueError(f"prune_scores: score must be one of {', '.join(SCORES)}, got {score!r}.")
    if score in ("snr", "evidence") and not is_bayesian(model):
        raise InvalidValueError(
            f"prune_scores: score={score!r} needs a posterior, got a plain {type(model).__name__}; bayesify and "
            "fit_posterior first, or use 'obd'."
        )
    check_number("prune_scores", "sparsity", sparsity, least=0, below=1)
    if damping is not None:
        check_number("prune_scores", "damping", damping, least=0)
    if score != "obd":
        return
    if loader is None:
        raise InvalidValueError("prune_scores: score='obd' needs loader, got none; pass batches of inputs.")
    check_loader("prune_scores", loader)


def _damaged(
    model: nn.Module,
    loader: Iterable[Any],
    likelihood: Likelihood,
    sparsity: float,
    damping: float | None,
    output: OutputSelector | None,
    unpack: Unpack | None,
    generator: torch.Generator | None,
    progress: Callable[[int, int | None], None] | None,
) -> dict[str, Tensor]:
    """The scores of optimal brain damage with a damping that is given or chosen."""
    check_in_one_process("prune_scores", model)
    bnn = copy_model("prune_scores", model) if is_bayesian(model) else bayesify(model)
    heldout = HeldOut("prune_scores", to_deterministic(bnn), likelihood, output)
    num_batches = len(loader) if isinstance(loader, Sized) else None
    with evaluating(bnn), torch.random.fork_rng(devices=[]), torch.enable_grad():
        found = diagonal_curvature(
            bnn.requires_grad_(True), heldout.splitting(loader, num_batches, unpack), likelihood, "ggn",
            verb="prune_scores", num_batches=num_batches, output=output, progress=progress,
            generator=generator or torch.Generator().manual_seed(0),
        )  # fmt: skip
    posteriors = matrices(bnn)
    curvature = {name: found.values[name].detach() for name in posteriors}
    mean = sum(float(h.double().sum()) for h in curvature.values()) / max(sum(h.numel() for h in curvature.values()), 1)

    def scores(value: float) -> dict[str, Tensor]:
        squares = {name: precise(p.mean().detach()).square() for name, p in posteriors.items()}
        if value == float("inf") or mean == 0:
            return squares
        return {name: square * (curvature[name] / mean + value) for name, square in squares.items()}

    def lost(value: float) -> tuple[float, float]:
        masks = pruning_masks(bnn, sparsity=sparsity, scores=scores(value))
        return heldout.loss(to_deterministic(bnn, masks=masks)).ranked

    return scores(min(DAMPINGS, key=lost) if damping is None else float(damping))
