"""Operations that are linear in one input and read it channel by channel: the places where a channel can end.

For a weight W and channels x_i, y_o = b_o + sum_i W_oi * x_i. A channel i is read where W_oi is not zero for an output
that stays. A constant channel x_i = c_i does not have to be there: b_o + sum_i W_oi * c_i takes its share. Where zero
padding makes that share differ at the border, another constant channel k (the carrier) takes it:
W_ok + sum_i W_oi * c_i / c_k.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, fx

__all__ = ["GroupSizes", "Reader"]


@dataclass
class Reader:
    """One use of a weight. Inputs and outputs are numbered as the operation sees them, ``I`` in ``G`` groups.

    Attributes:
        node: The operation.
        weight: Path of the weight.
        bias: Path of the bias, None without one.
        new_bias: Where a bias can be added, None where there is no place.
        out_axis: The weight's axis of outputs (within a group for ``transposed`` ones).
        in_axis: The weight's axis of inputs (within a group, except for ``transposed`` ones).
        inputs: (I,) atoms.
        outputs: (O,) atoms.
        reads: (G, O / G, I / G) bool, whether an input has a weight that is not zero.
        known: (I,) whether the input is a constant.
        const: (I,) the constant.
        carried: Whether a constant that is not zero needs a carrier.
        selects: Whether unread inputs can be left out by an index before the operation.
    """

    node: fx.Node
    weight: str
    bias: str | None
    new_bias: str | None
    out_axis: int
    in_axis: int
    inputs: Tensor
    outputs: Tensor
    reads: Tensor
    known: Tensor
    const: Tensor
    carried: bool
    selects: bool = False

    @property
    def num_groups(self) -> int:
        """Number of groups of the convolution."""
        return self.reads.shape[0]

    def grouped(self, per_input: Tensor) -> Tensor:
        """(I,) as (G, I / G)."""
        return per_input.reshape(self.num_groups, -1)

    def read(self, outputs: Tensor) -> Tensor:
        """(I,) whether an input has a weight that is not zero for one of the given outputs (O,)."""
        return (self.reads & self.grouped(outputs)[..., None]).any(1).reshape(-1)

    def needed(self, outputs: Tensor) -> Tensor:
        """(I,) inputs that must be there for the given outputs: read, and not constant."""
        return self.read(outputs) & ~self.known

    def shares(self, inputs: Tensor, outputs: Tensor) -> Tensor:
        """(I,) constants that are not among the given inputs, and whose share one of the given outputs needs."""
        return ~inputs & self.known & (self.const != 0) & self.read(outputs)

    def carriers(self) -> Tensor:
        """(I,) inputs whose constant is large enough to carry the others of their group."""
        size = self.grouped(torch.where(self.known, self.const, 0.0)).abs()
        return ((size > 0) & (size >= 1e-3 * size.amax(1, keepdim=True))).reshape(-1)


@dataclass(frozen=True)
class GroupSizes:
    """Groups of a grouped operation keep equally many inputs, and equally many outputs, unless they go as a whole.

    Attributes:
        inputs: (G, I / G) atoms.
        outputs: (G, O / G) atoms.
    """

    inputs: Tensor
    outputs: Tensor
