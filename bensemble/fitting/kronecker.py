r"""Kronecker-factored curvature of single layers, in one pass over the data.

For a layer with inputs :math:`\phi` and outputs y the generalised Gauss-Newton matrix is about :math:`A \otimes G` with
:math:`A = \sum_n \phi_n\phi_n^T` and G the mean of :math:`J_n^T F_n J_n`, J the Jacobian of the model's outputs in y
and F the Fisher information of the likelihood (Martens & Grosse 2015, "Optimizing Neural Networks with
Kronecker-factored Approximate Curvature"; Ritter, Botev & Barber 2018; Daxberger et al. 2021, "Laplace Redux"). In the
basis of the eigenvectors the curvature of a coordinate is the product of two eigenvalues. The bias is a factor of its
own over the outputs. G is exact for a last layer with at most ``EXACT`` classes; otherwise it is the mean over random
vectors with covariance F, one for each example.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from ..basis import Basis
from ..errors import InvalidValueError
from ..layers.linear_in_weights import LinearOpLayer
from ..likelihoods import Bernoulli, Categorical, Gaussian, Likelihood
from ..models.batches import device_of, to_device
from ..models.forwards import forward
from ..models.outputs import OutputSelector
from ..models.ranks import failing_together, sum_over_processes
from ..posteriors import named_posteriors
from ..prediction.places import output_places
from .curvature import Curvature, random_signs

__all__ = ["check_structure", "kronecker_curvature", "rotatable", "unfit"]

#: Most classes for which G is exact.
EXACT = 64
#: Most inputs and outputs of a layer: the eigenvectors of more take minutes and more memory than the network.
MOST_INPUTS, MOST_OUTPUTS = 8192, 4096


def rotatable(layer: Any) -> str | None:
    """Why a layer cannot have a Kronecker-factored posterior; None if it can."""
    if not isinstance(layer, LinearOpLayer) or layer.channel_axis is None or layer._posterior("weight") is None:
        return f"{type(layer).__name__} does not apply one weight matrix at every position"
    outputs, inputs = layer.w_mu.shape[:2]
    if inputs > MOST_INPUTS or outputs > MOST_OUTPUTS:
        return f"it has {inputs} inputs and {outputs} outputs, and {MOST_INPUTS} and {MOST_OUTPUTS} are the most"
    return None


def check_structure(structure: str, model: Any, curvature: str) -> bool:
    """Whether the fit is Kronecker-factored; raises if it was asked for and cannot be.

    ``"auto"`` is so where the posterior is that of one last layer and the curvature the GGN.
    """
    if structure not in ("auto", "diagonal", "kronecker"):
        raise InvalidValueError(
            f"fit_posterior: structure must be 'auto', 'diagonal' or 'kronecker', got {structure!r}."
        )
    layers = {id(p.layer): (name, p) for name, p in named_posteriors(model)}
    reasons = {name: rotatable(p.layer) or unfit(p) for name, p in layers.values()}
    if structure == "auto":
        (_, first), *others = layers.values()
        return (
            curvature == "ggn" and not others and getattr(first.layer, "is_last", False) and not any(reasons.values())
        )
    if structure == "kronecker" and curvature != "ggn":
        raise InvalidValueError(f"fit_posterior: structure='kronecker' needs curvature='ggn', got {curvature!r}.")
    bad = [f"'{name}': {reason}" for name, reason in reasons.items() if reason]
    if structure == "kronecker" and bad:
        raise InvalidValueError(
            f"fit_posterior: structure='kronecker' does not fit {bad[0]}; choose layers with bayesify(include=...), "
            "such as convert.last_layer(model, x), or take structure='diagonal'."
        )
    return structure == "kronecker"


def unfit(posterior: Any) -> str | None:
    """Why a posterior, as it is, cannot be rotated; None if it can."""
    held = list(posterior.layer._posteriors())
    if any(p.mask is not None for p in held):
        return "it is pruned; fit first, then prune"
    if any(not getattr(p.prior, "is_constant", False) for p in held):
        return f"it needs a normal prior with one standard deviation, got {posterior.prior}; call set_prior"
    return None


@dataclass
class _Sums:
    """The sums of one layer."""

    layer: LinearOpLayer
    calls: list[tuple[Tensor, Tensor]]
    inner: Tensor
    outer: Tensor
    count: int = 0


def kronecker_curvature(
    model: torch.nn.Module,
    pairs: Iterable[tuple[Any, Any]],
    likelihood: Likelihood,
    *,
    num_batches: int | None,
    output: OutputSelector | None = None,
    generator: torch.Generator,
    progress: Callable[[int, int | None], None] | None = None,
) -> tuple[Curvature, dict[str, Basis]]:
    """The curvature of every posterior in its own basis, and that basis, by posterior name.

    The arguments are those of :func:`bensemble.fitting.curvature.diagonal_curvature`.
    """
    posteriors = dict(named_posteriors(model))
    sums = {id(p.layer): _empty(p.layer) for p in posteriors.values()}
    device, num_terms, num_passes = device_of(model), 0, 0
    with failing_together("fit_posterior"), _recording(sums.values()):
        for index, pair in enumerate(pairs):
            inputs, target = to_device(pair, device)
            raw = forward("fit_posterior", model, inputs, output)
            if not index:
                likelihood.check(raw.detach())
            _add(list(sums.values()), raw, target, likelihood, generator)
            num_terms += likelihood.num_terms(likelihood.spread(raw.detach()) if target is None else target)
            num_passes += 1
            if progress is not None:
                progress(index + 1, num_batches)
    for s in sums.values():
        s.inner, s.outer = sum_over_processes(s.inner), sum_over_processes(s.outer)
    counts = torch.tensor([num_terms, num_passes, *(s.count for s in sums.values())])
    num_terms, num_passes, *positions = sum_over_processes(counts).tolist()
    for s, count in zip(sums.values(), positions, strict=True):
        s.count = count
    if not num_passes:
        raise InvalidValueError("fit_posterior: loader must give at least one batch, got none.")
    values, bases = {}, {}
    eigen = {key: _eigen(s) for key, s in sums.items()}
    for name, posterior in posteriors.items():
        a, inner, g, outer, count = eigen[id(posterior.layer)]
        is_weight = posterior.name == "weight"
        curvature = torch.outer(g, a) if is_weight else g * count
        if not bool(curvature.isfinite().all()):
            raise InvalidValueError(
                f"fit_posterior: the curvature of '{name}' is not finite; look for inputs or outputs that are not "
                "finite, and fit in float32."
            )
        values[name] = curvature.view(posterior.mu.shape)
        bases[name] = Basis(outer, inner if is_weight else None)
    return Curvature(values, num_terms, num_passes), bases


def _empty(layer: LinearOpLayer) -> _Sums:
    outputs, inputs = layer.w_mu.shape[:2]
    inner, outer = (torch.zeros(n, n, dtype=torch.float64, device=layer.w_mu.device) for n in (inputs, outputs))
    return _Sums(layer, [], inner, outer)


@contextmanager
def _recording(sums: Iterable[_Sums]) -> Iterator[None]:
    """Remember what every call of a layer takes and gives."""

    def recorder(one: _Sums) -> Callable[..., None]:
        return lambda module, args, result: one.calls.append((args[0].detach(), result))

    hooks = [s.layer.register_forward_hook(recorder(s)) for s in sums]
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _add(sums: list[_Sums], raw: Tensor, target: Any, likelihood: Likelihood, generator: torch.Generator) -> None:
    """Add one batch, and forget its inputs and outputs."""
    seen = [s for s in sums for _ in s.calls]
    results = [y for s in sums for _, y in s.calls]
    is_last = len(sums) == 1 and len(results) == 1 and sums[0].layer.is_last
    # Without random signs the positions must not mix, as they do where a segmenter resizes its output.
    is_last = is_last and output_places(raw, results[0]) is not None
    for probe in _probes(likelihood, raw.detach(), target, is_last, generator):
        slopes = torch.autograd.grad(raw, results, probe.to(raw.dtype), retain_graph=True, allow_unused=True)
        for s, slope in zip(seen, slopes, strict=True):
            if slope is not None:
                rows = _rows(slope, s.layer)
                s.outer += rows.t() @ rows
    kept: Tensor | None = None
    if is_last and isinstance(likelihood, Categorical) and isinstance(target, Tensor):
        counted = (target != likelihood.ignore_index).unsqueeze(likelihood.axis(raw)).expand_as(raw)
        (slope,) = torch.autograd.grad(raw, results, counted.to(raw.dtype))
        kept = _rows(slope, sums[0].layer).ne(0).any(1)
    for s in sums:
        for phi, _ in s.calls:
            rows = _rows(phi, s.layer)
            rows = rows if kept is None else rows[kept]
            s.inner += rows.t() @ rows
            s.count += len(rows)
        s.calls.clear()


def _rows(tensor: Tensor, layer: LinearOpLayer) -> Tensor:
    """One row of channels for each position of each example."""
    axis = layer.channel_axis
    assert axis is not None
    rows = tensor.movedim(axis, -1)
    return rows.reshape(-1, rows.shape[-1]).double()


def _probes(
    likelihood: Likelihood, raw: Tensor, target: Any, is_last: bool, generator: torch.Generator
) -> Iterator[Tensor]:
    """Vectors whose outer products have the sum F, exactly or on average."""
    wanted = target if isinstance(target, Tensor) else None
    axis = likelihood.axis(raw) if isinstance(likelihood, Categorical) else 1 if raw.ndim == 2 else None
    known = type(likelihood) in (Categorical, Bernoulli, Gaussian)
    if not (is_last and known and axis is not None and raw.shape[axis] <= EXACT):
        yield likelihood.probe(raw, random_signs(generator), wanted)
        return
    for index in range(raw.shape[axis]):
        one = torch.zeros(raw.shape[axis], device=raw.device)
        one[index] = 1.0
        shape = [-1 if a == axis else 1 for a in range(raw.ndim)]
        yield likelihood.probe(raw, lambda like: one.view(shape).to(like.dtype).expand_as(like), wanted)  # noqa: B023


def _eigen(sums: _Sums) -> tuple[Tensor, Tensor, Tensor, Tensor, int]:
    """Eigenvalues and eigenvectors of A and of the mean G, and the number of positions."""
    if not (bool(sums.inner.isfinite().all()) and bool(sums.outer.isfinite().all())):
        raise InvalidValueError(
            "fit_posterior: the inputs or slopes of a layer are not finite; look for inputs that are not finite, and "
            "fit in float32."
        )
    a, inner = torch.linalg.eigh(sums.inner)
    g, outer = torch.linalg.eigh(sums.outer / max(sums.count, 1))
    return a.clamp_min(0), inner, g.clamp_min(0), outer, sums.count
