r"""The basis in which the elements of a weight are independent.

A posterior is diagonal in its own basis. As a rule that is the plain one. For a layer with the Kronecker-factored
curvature :math:`A \otimes G` it is that of the eigenvectors :math:`Q_a` of A, over the inputs, and :math:`Q_g` of G,
over the outputs (Martens & Grosse 2015, "Optimizing Neural Networks with Kronecker-factored Approximate Curvature";
Ritter, Botev & Barber 2018, "A Scalable Laplace Approximation for Neural Networks"):

.. math:: W = M + Q_g (S \circ E) Q_a^T \qquad E \text{ standard normal}

A rotation changes neither the entropy nor a normal prior with one standard deviation, so the KL keeps its form.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

__all__ = ["Basis", "mix"]


def mix(tensor: Tensor, matrix: Tensor, axis: int) -> Tensor:
    """The product of a matrix with the channels on an axis, at every position."""
    if axis == -2:
        return matrix @ tensor
    return (tensor.movedim(axis, -1) @ matrix.t()).movedim(-1, axis)


@dataclass(frozen=True, eq=False)
class Basis:
    """Two orthogonal matrices, in float32, or float64 for float64 weights.

    Attributes:
        outer: Eigenvectors over the outputs as columns, shape (out, out).
        inner: Eigenvectors over the inputs as columns, shape (in, in); None for a bias.
    """

    outer: Tensor
    inner: Tensor | None = None

    def double(self) -> Basis:
        """The same in float64."""
        return Basis(self.outer.double(), None if self.inner is None else self.inner.double())

    def cpu(self) -> Basis:
        """The same on the CPU."""
        return Basis(self.outer.cpu(), None if self.inner is None else self.inner.cpu())

    def from_plain(self, weight: Tensor) -> Tensor:
        """The coordinates of a weight of shape (out, in, ...) or (out,), in the same shape."""
        rows = self.outer.t() @ weight.reshape(len(weight), -1)
        return (rows if self.inner is None else rows @ self.inner).view_as(weight)

    def to_plain(self, coordinates: Tensor) -> Tensor:
        """The weight with these coordinates."""
        rows = self.outer @ coordinates.reshape(len(coordinates), -1)
        return (rows if self.inner is None else rows @ self.inner.t()).view_as(coordinates)

    def variance(self, own: Tensor) -> Tensor:
        """The variance of every element of the weight, from the variance of every coordinate."""
        rows = self.outer.square() @ own.reshape(len(own), -1)
        return (rows if self.inner is None else rows @ self.inner.square().t()).view_as(own)

    def problems(self, shape: torch.Size) -> list[str]:
        """Why this cannot be the basis of a weight of a shape; empty if it can."""
        found = []
        sizes = {"outer": (self.outer, shape[0])}
        if self.inner is not None:
            sizes["inner"] = (self.inner, shape[1:].numel())
        elif len(shape) > 1:
            found.append("inner must be given for a weight of two axes or more.")
        for name, (matrix, size) in sizes.items():
            if matrix.shape != (size, size):
                found.append(f"{name} must have shape {(size, size)}, got {tuple(matrix.shape)}.")
                continue
            wide = matrix.double()
            error = float((wide.t() @ wide - torch.eye(size, dtype=torch.float64, device=wide.device)).abs().max())
            if not error < 1e-4:
                found.append(f"{name} must be orthogonal, its products are {error:.2g} from those of a unit matrix.")
        return found
