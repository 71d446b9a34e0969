r"""The diagonal of the curvature of the negative log likelihood, for every posterior mean, in one pass.

With J the Jacobian of the outputs of one example and F the Fisher information of the likelihood at those outputs,
the generalised Gauss-Newton matrix (GGN) is :math:`\sum_n J_n^T F_n J_n`. A random vector with
:math:`E[v v^T] = F` gives :math:`E[(J^T v)_i^2] = (J^T F J)_{ii}` from one backward pass (Hutchinson 1990; Martens,
Sutskever & Swersky 2012, "Estimating the Hessian by Back-propagating Curvature"). The signs in v are also
independent between examples, so cross terms vanish on average and one backward pass serves a whole chunk of examples
(:mod:`bensemble.fitting.pieces`).
This works for any module with a backward pass, stores nothing per example, and costs one epoch without an optimizer.

The empirical Fisher takes :math:`v = \pm\nabla_{output}(-\log p(y | output))` at the given targets instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..errors import InvalidValueError
from ..likelihoods import Likelihood
from ..likelihoods.base import Signs
from ..models.batches import device_of, to_device
from ..models.forwards import forward
from ..models.outputs import OutputSelector
from ..models.ranks import sum_over_processes
from ..posteriors import named_posteriors
from .pieces import Pieces

__all__ = ["Curvature", "diagonal_curvature", "random_signs"]


@dataclass(frozen=True)
class Curvature:
    """The diagonal curvature, summed over the data.

    Attributes:
        values: By posterior name, in the shape and dtype of rho; not negative.
        num_terms: Terms of the likelihood that were summed.
        num_passes: Backward passes.
    """

    values: dict[str, Tensor]
    num_terms: int
    num_passes: int

    def over_processes(self) -> Curvature:
        """The sum over all processes, which must all call this."""
        values = {name: sum_over_processes(value) for name, value in self.values.items()}
        return Curvature(values, *sum_over_processes(torch.tensor([self.num_terms, self.num_passes])).tolist())


def diagonal_curvature(
    model: nn.Module,
    pairs: Iterable[tuple[Any, Any]],
    likelihood: Likelihood,
    kind: str,
    *,
    verb: str = "fit_posterior",
    num_batches: int | None,
    batch_dim: int | None = None,
    output: OutputSelector | None = None,
    generator: torch.Generator,
    progress: Callable[[int, int | None], None] | None = None,
) -> Curvature:
    """The diagonal GGN (``kind="ggn"``) or empirical Fisher (``"fisher"``) of every posterior mean.

    Args:
        model: A model in evaluation mode, whose means require gradients.
        pairs: Batches as inputs and target. ``"fisher"`` needs targets; for ``"ggn"`` they say which terms are ignored
            and may be None.
        likelihood: What the outputs mean.
        kind: ``"ggn"`` or ``"fisher"``.
        verb: The public function that asks.
        num_batches: Number of batches; None if it is unknown.
        batch_dim: The axis that counts the examples; None to find it.
        output: Which part of a structured output.
        generator: Source of the random signs.
        progress: Called with (batches done, batches in all or None).
    """
    posteriors = dict(named_posteriors(model))
    means = [posterior.mu for posterior in posteriors.values()]
    sums = [torch.zeros_like(posterior.rho, requires_grad=False) for posterior in posteriors.values()]
    device = device_of(model)

    def run(part: Any) -> Tensor:
        return forward(verb, model, part, output)

    def compared(raw: Tensor, wanted: Any) -> Tensor:  # its noise is not that of the curvature
        return _probe(likelihood, kind, raw, wanted, torch.Generator().manual_seed(0))

    pieces = Pieces(run, compared, means, num_batches, batch_dim)
    num_terms = num_passes = 0
    for index, pair in enumerate(pairs):
        inputs, target = to_device(pair, device)
        if kind == "fisher" and target is None:
            raise InvalidValueError("fit_posterior: curvature='fisher' needs targets, got a batch without; use 'ggn'.")
        for part, wanted, vectors in pieces.of(inputs, target):
            raw = run(part)
            if not index:
                likelihood.check(raw.detach())
            for left in reversed(range(vectors)):
                probe = _probe(likelihood, kind, raw, wanted, generator)
                gradients = torch.autograd.grad(raw, means, probe, allow_unused=True, retain_graph=left > 0)
                for total, gradient in zip(sums, gradients, strict=True):
                    if gradient is not None:
                        total += gradient.to(total.dtype).square() / vectors
            num_terms += likelihood.num_terms(likelihood.spread(raw.detach()) if wanted is None else wanted)
            num_passes += vectors
        if progress is not None:
            progress(index + 1, num_batches)
    if not num_passes:
        raise InvalidValueError(f"{verb}: loader must give at least one batch, got none.")
    values = dict(zip(posteriors, sums, strict=True))
    broken = [name for name, value in values.items() if not bool(value.isfinite().all())]
    if broken:
        raise InvalidValueError(
            f"{verb}: the curvature of {len(broken)} weights is not finite, '{broken[0]}' first; look for "
            "inputs or outputs that are not finite, and fit in float32."
        )
    return Curvature(values, num_terms, num_passes)


def _probe(likelihood: Likelihood, kind: str, raw: Tensor, target: Any, generator: torch.Generator) -> Tensor:
    """A random vector whose gradient, squared, is an unbiased estimate of the diagonal curvature."""
    signs = random_signs(generator)
    if kind == "ggn":
        return likelihood.probe(raw.detach(), signs, target).to(raw.dtype)
    leaf = raw.detach().requires_grad_()
    terms = likelihood.terms(leaf, target)
    return torch.autograd.grad(terms, leaf, signs(terms))[0]


def random_signs(generator: torch.Generator) -> Signs:
    """Independent random signs in the shape of any tensor."""

    def signs(like: Tensor) -> Tensor:
        bits = torch.randint(0, 2, like.shape, generator=generator, device=generator.device)
        return (2 * bits - 1).to(like.device, like.dtype)

    return signs
