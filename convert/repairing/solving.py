r"""The least squares behind a repair: per output the best weights that are left, given that the others are zero.

With inputs :math:`x` of the pruned network and targets :math:`t` of the dense one, the weights of one output solve

.. math:: \min_w \sum (w^T x - t)^2 + \lambda \|w - w_0\|^2, \quad w_i = 0 \text{ where removed},

so that :math:`w = w_0 + (A_{SS} + \lambda I)^{-1} (b - A w_0)_S` with :math:`A = \sum x x^T`,
:math:`b = \sum t x`. That is Optimal Brain Surgeon for a whole mask at once (Hassibi & Stork 1993); compare Frantar &
Alistarh 2023, "SparseGPT".
"""

from __future__ import annotations

import torch
from torch import Tensor

__all__ = ["Sums", "solved", "with_bias"]

#: Most multiplications for which every mask is factorised by itself; above, all outputs share conjugate gradients.
FACTORISED = 4e12
#: Steps of conjugate gradients, in float32, and the residual at which they end.
STEPS, RESIDUAL = 50, 1e-3
#: Eigenvalues below this share of the largest are 0.
NOTHING = 1e-10


class Sums:
    """Sums over rows, from which the error of any weights follows; the rows are not kept.

    Args:
        matrix: The weights, (groups, outputs, inputs), with the bias in the last column where there is one.
    """

    def __init__(self, matrix: Tensor) -> None:
        groups, outputs, inputs = matrix.shape
        self.inputs = matrix.new_zeros(groups, inputs, inputs)
        self.both = matrix.new_zeros(groups, outputs, inputs)
        self.targets = matrix.new_zeros(groups, outputs)
        self.count = 0

    def add(self, inputs: Tensor, targets: Tensor, weights: Tensor | None = None) -> None:
        """Add rows of inputs (groups, rows, inputs) and targets (groups, rows, outputs), and what each row counts."""
        x, t = with_bias(inputs, self.inputs), targets.to(self.inputs)
        if weights is not None:
            roots = weights.to(x).sqrt().reshape(1, -1, 1)
            x, t = roots * x, roots * t
        self.count += x.shape[1]
        self.inputs += x.mT @ x
        self.both += t.mT @ x
        self.targets += t.square().sum(1)

    def error(self, matrix: Tensor) -> float:
        """Sum of squared differences over that of squared targets."""
        found = (matrix * (matrix @ self.inputs - 2 * self.both)).sum() + self.targets.sum()
        return float(found.clamp_min(0) / self.targets.sum().clamp_min(torch.finfo(found.dtype).tiny))


def with_bias(inputs: Tensor, matrix: Tensor) -> Tensor:
    """Rows of inputs for a matrix, in its dtype; with a column of ones where its last column is a bias."""
    x = inputs.to(matrix)
    return x if x.shape[-1] == matrix.shape[-1] else torch.cat([x, torch.ones_like(x[..., :1])], -1)


def solved(sums: Sums, matrix: Tensor, kept: Tensor, damping: float) -> Tensor:
    """The best weights.

    Args:
        sums: Over the rows to fit.
        matrix: The weights before, (groups, outputs, inputs).
        kept: Where a weight may change.
        damping: Lambda as a multiple of the mean of the diagonal of A. At 0 the change is the smallest of the best.
    """
    slope = sums.both - matrix @ sums.inputs
    found = matrix.clone()
    for group, (a, rows, wanted) in enumerate(zip(sums.inputs, kept, slope, strict=True)):
        a = a + damping * a.diagonal().mean() * torch.eye(len(a), dtype=a.dtype, device=a.device)
        masks, which = torch.unique(rows, dim=0, return_inverse=True)
        if float(masks.sum(1, dtype=torch.float64).pow(3).sum()) / 3 > FACTORISED:
            found[group] += _by_conjugate_gradients(a.float(), (wanted * rows).float(), rows)
            continue
        for index, mask in enumerate(masks):
            (alive,), (outputs,) = torch.where(mask), torch.where(which == index)
            if len(alive):
                change = _factorised(a[alive][:, alive], wanted[outputs][:, alive].T, exact=damping == 0).T
                found[group, outputs[:, None], alive] += change
    return found


def _factorised(a: Tensor, b: Tensor, exact: bool) -> Tensor:
    """The solution of a system with a positive definite matrix; the smallest one where it is only semidefinite."""
    if not exact:
        factor, failed = torch.linalg.cholesky_ex(a)
        if not failed:
            return torch.cholesky_solve(b, factor)
    values, vectors = torch.linalg.eigh(a)
    inverse = torch.where(values > NOTHING * values[-1], 1 / values, 0)
    return vectors @ (inverse[:, None] * (vectors.T @ b))


def _by_conjugate_gradients(a: Tensor, b: Tensor, kept: Tensor) -> Tensor:
    """The solutions for all rows of ``b`` at once, each within its own mask."""
    scale = torch.where(a.diagonal() > 0, 1 / a.diagonal(), 0)
    x, residual = torch.zeros_like(b), b.clone()
    direction = scaled = residual * scale
    power = (residual * scaled).sum(1, keepdim=True)
    enough = RESIDUAL**2 * power
    for _ in range(STEPS):
        if bool((power <= enough).all()):
            break
        forward = (direction @ a) * kept
        curvature = (direction * forward).sum(1, keepdim=True)
        step = torch.where(curvature > 0, power / curvature, 0)
        x, residual = x + step * direction, residual - step * forward
        scaled, before = residual * scale, power
        power = (residual * scaled).sum(1, keepdim=True)
        direction = scaled + torch.where(before > 0, power / before, 0) * direction
    return x
