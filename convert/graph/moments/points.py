r"""Fixed points that stand for a Gaussian: the expectation of any function is its mean over them.

A Sobol sequence through the normal quantile function, each point with its mirror image, so that odd moments vanish,
and whitened where there are points enough, so that mean and covariance are exact. The points are constants.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, fx

from .recording import Recorder
from .state import Uncertain

__all__ = ["output_points", "record_points", "standard_points"]

#: Points for one expectation: few dimensions, whose covariance they can have exactly, need no more than the first. For
#: ten classes 64 gave every probability within 0.002 of its limit.
FEWEST_POINTS, MOST_POINTS = 64, 128
#: With more features than this, the covariance is taken apart by its latents instead of as a whole.
MOST_FEATURES = 32


def standard_points(dimension: int) -> Tensor:
    """Points (count, dimension) of the standard normal distribution, with unit variance by count - 1."""
    count = FEWEST_POINTS if 4 * dimension < FEWEST_POINTS else MOST_POINTS
    engine = torch.quasirandom.SobolEngine(dimension, scramble=True, seed=0)
    uniform = engine.draw(count // 2, dtype=torch.float64)
    half = torch.special.ndtri(uniform.clamp(1e-6, 1 - 1e-6))
    points = torch.cat([half, -half])
    if count // 2 > 2 * dimension:
        covariance = points.t() @ points / (count - 1)
        points = torch.linalg.solve_triangular(torch.linalg.cholesky(covariance), points.t(), upper=False).t()
    return (points / points.std(0)).float()


def record_points(output: Uncertain) -> tuple[list[Tensor], fx.GraphModule, int]:
    """What is known of an output, mean and variance first, a module that makes its points of that, and their number."""
    recorder, parts = Recorder(), list[Tensor]()

    def part(tensor: Tensor) -> Tensor:
        parts.append(tensor)
        found: Tensor = recorder.input(f"part_{len(parts)}", tensor)
        return found

    known = replace(output, mean=part(output.mean), variance=part(output.variance), own=part(output.own))
    known = replace(
        known,
        terms=tuple(
            replace(term, packed=part(term.packed), gain=None if term.gain is None else part(term.gain))
            for term in output.terms
        ),
    )
    with recorder:
        points = output_points(known)
    return parts, recorder.module([points]), len(points)


def output_points(output: Uncertain) -> Tensor:
    """Points of an activation, shape (K, ...).

    Every position gets the same point of the features' distribution, scaled by its own standard deviation: right for
    each position by itself.
    """
    features = output.own.shape[-1]
    latents = sum(term.basis.columns.shape[1] for term in output.terms) if features > MOST_FEATURES else 0
    standard = standard_points(features + latents).to(output.mean)
    common = output.common().clamp_min(1e-30)
    if features <= MOST_FEATURES:
        size = common.rsqrt()
        root = cholesky(_covariance(output) * size.unsqueeze(-1) * size.unsqueeze(-2))
        if not output.has_positions:
            wide = (root * output.variance.sqrt().unsqueeze(-1)).flatten(0, 1)
            return torch.addmm(output.mean.flatten(), standard, wide.t()).unflatten(1, (-1, features))
        unit = standard @ root.transpose(-1, -2)  # (B, K, C)
    else:
        unit = (output.own / common).sqrt().unsqueeze(-2) * standard[:, :features]
        used = features
        for term in output.terms:
            rank = term.basis.columns.shape[1]
            size = torch.diagonal(term.covariance(), dim1=-2, dim2=-1).clamp_min(1e-30)
            root = cholesky(term.covariance() / (size.unsqueeze(-1) * size.unsqueeze(-2)).sqrt())
            shared_latents = (standard[:, used : used + rank] @ root.transpose(-1, -2)) * size.sqrt().unsqueeze(-2)
            shared = shared_latents @ term.basis.columns.t()
            gain = common.rsqrt() if term.gain is None else term.gain * common.rsqrt()
            unit = unit + shared * gain.unsqueeze(-2)
            used += rank
    unit = unit.transpose(0, 1)
    if output.folded > 1:
        unit = unit.repeat_interleave(output.folded, -1)
    else:
        while unit.ndim <= output.ndim:
            unit = unit.unsqueeze(-1)
        unit = unit.movedim(2, output.axis + 1)
    return output.mean + output.variance.sqrt() * unit


def _covariance(output: Uncertain) -> Tensor:
    """The covariance of the features as a matrix, (B, C, C)."""
    features = output.own.shape[-1]
    covariance = output.own.unsqueeze(-1) * torch.eye(features, dtype=output.own.dtype, device=output.own.device)
    for term in output.terms:
        columns = term.basis.columns
        if term.gain is None:
            whole = term.basis.unpack.unflatten(1, [columns.shape[1]] * 2)
            covariance = covariance + (term.packed @ (columns @ whole @ columns.t()).flatten(1)).unflatten(
                1, (features, features)
            )
        else:
            loadings = columns * term.gain.unsqueeze(-1)
            covariance = covariance + loadings @ term.covariance() @ loadings.transpose(-1, -2)
    return covariance


def cholesky(matrix: Tensor) -> Tensor:
    """Lower root of correlation matrices (B, n, n), which may be singular; unrolled, because ONNX has none."""
    size = matrix.shape[-1]
    rest = matrix + 1e-5 * torch.eye(size, dtype=matrix.dtype, device=matrix.device)
    rows, pivots = list[Tensor](), list[Tensor]()
    for index in range(size):
        row = rest[:, index : index + 1]
        pivots.append(row[:, :, index : index + 1])
        rows.append(row / pivots[-1])
        if index < size - 1:
            rest = rest - rest[:, :, index : index + 1] * rows[-1]
    keep = torch.ones(size, size, dtype=matrix.dtype, device=matrix.device).triu()
    return (torch.cat(rows, 1) * (torch.cat(pivots, 1).clamp_min(0).sqrt() * keep)).transpose(1, 2)
