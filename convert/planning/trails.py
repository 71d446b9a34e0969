"""Where Parameters go: followed through operations on weights alone to the operations where they meet data.

What counts is whether a Parameter is a weight of a linear operation. A matrix that multiplies data is; a table of
positions that is added is not; nor is a token or a query that a layer takes as its *input*, although that layer then
multiplies it. So every Parameter carries a strength: a weight is computed from Parameters alone, a selection was picked
from one by the data (the weights of an expert, or a row of a table), an input has been through a layer as its data.
"""

from __future__ import annotations

from collections.abc import Hashable, Iterable, Mapping, Sequence
from enum import IntEnum
from typing import Any, NamedTuple

__all__ = ["LINEAR_OPERATIONS", "Flow", "data_arguments", "plain_name"]

#: Operations that tell weights from data, with the positions of what they take as data.
_WEIGHTED = {
    **dict.fromkeys(("linear", "conv1d", "conv2d", "conv3d", "convolution"), slice(1)),
    **dict.fromkeys(("conv_transpose1d", "conv_transpose2d", "conv_transpose3d"), slice(1)),
    **dict.fromkeys(("lstm_cell", "gru_cell", "rnn_tanh_cell", "rnn_relu_cell", "bilinear"), slice(2)),
    **dict.fromkeys(("multi_head_attention_forward", "native_multi_head_attention"), slice(3)),
    "transformer_encoder_layer_fwd": slice(1),
}
_RECURRENT = ("lstm", "gru", "rnn_tanh", "rnn_relu")

#: Operations linear in either operand, with the positions of what they only add.
_PRODUCTS: dict[str, slice] = {
    **dict.fromkeys(("matmul", "mm", "bmm", "mv", "dot", "inner", "outer", "tensordot", "einsum", "kron"), slice(0)),
    **dict.fromkeys(("chain_matmul", "multi_dot", "grouped_mm", "scaled_mm"), slice(0)),
    **dict.fromkeys(("addmm", "addbmm", "baddbmm", "addmv", "addr"), slice(1)),
    "scaled_dot_product_attention": slice(3, None),
}
_DATA_KEYWORDS = ("input", "input1", "input2", "hx", "query", "key", "value", "src")
_ADDED_KEYWORDS = ("input", "attn_mask")

LINEAR_OPERATIONS = frozenset((*_WEIGHTED, *_RECURRENT, *_PRODUCTS, "mul"))

#: Operations that only move entries of a weight or scale them, so that a zero stays a zero.
_KEEPS_ZEROS = frozenset(
    [
        *("alias", "as_strided", "bfloat16", "cat", "chunk", "clone", "contiguous", "detach"),
        *("double", "expand", "expand_as", "flatten", "flip", "float", "gather"),
        *("get", "getattr", "getitem", "half", "index_select", "movedim", "mul", "narrow"),
        *("neg", "permute", "repeat", "requires_grad", "reshape", "reshape_as"),
        *("select", "split", "squeeze", "stack", "swapaxes", "swapdims", "t", "take_along_dim"),
        *("tensor_split", "to", "transpose", "type", "type_as", "unbind"),
        *("unflatten", "unsafe_view", "unsqueeze", "view", "view_as"),
    ]
)
_SELECTIONS = frozenset(["getitem", "index_select", "gather", "take_along_dim", "index", "take"])
_SYNONYMS = {
    **dict.fromkeys(("rmatmul", "imatmul"), "matmul"),
    **dict.fromkeys(("rmul", "imul", "multiply"), "mul"),
    **dict.fromkeys(("spmm", "smm"), "mm"),  # torch.mm and torch.spmm are one function
}


class Strength(IntEnum):
    """How far a value still is the Parameter that it came from."""

    INPUT = 1
    SELECTION = 2
    WEIGHT = 3


class Trail(NamedTuple):
    """What a value has to do with a Parameter.

    Attributes:
        strength: Whether it is still a weight.
        exact: Whether a zero in the Parameter is a zero in the value.
    """

    strength: Strength
    exact: bool

    def weakened(self, strength: Strength, exact: bool) -> Trail:
        """The trail after a step that leaves at most this much."""
        return Trail(min(self.strength, strength), self.exact and exact)


#: What a value carries, by identity of the Parameter.
Trails = dict[int, Trail]


def plain_name(name: str) -> str:
    """``__rmatmul__``, ``mul_`` and ``_native_x`` as ``matmul``, ``mul`` and ``native_x``."""
    stripped = name.strip("_")
    return _SYNONYMS.get(stripped, stripped)


def data_arguments(name: str, args: Sequence[Any], kwargs: Mapping[str, Any]) -> list[Any]:
    """The arguments that an operation takes as data, or only adds.

    Args:
        name: Its plain name.
        args: The positional arguments of one call.
        kwargs: The keyword arguments of the call.
    """
    keywords: tuple[str, ...] = _DATA_KEYWORDS
    if name in _RECURRENT:
        # A packed sequence is two arguments, so that the flag for biases comes one later.
        where = slice(2 if len(args) > 3 and isinstance(args[3], bool) else 3)
    elif name in _WEIGHTED:
        where = _WEIGHTED[name]
    elif name in _PRODUCTS:
        where, keywords = _PRODUCTS[name], _ADDED_KEYWORDS
    else:
        return []
    return [*args[where], *(kwargs[keyword] for keyword in keywords if keyword in kwargs)]


class Flow:
    """The trails of all values seen so far. A value that is not known is data.

    Attributes:
        operations: By identity of a Parameter, the names of the operations where it meets data.
        altered: Identities of Parameters that are computed with first, so that a zero need not stay a zero.
    """

    def __init__(self, operations: dict[int, set[str]], altered: set[int]) -> None:
        self.operations = operations
        self.altered = altered
        self._known: dict[Hashable, Trails] = {}

    def start(self, value: Hashable, parameter: int | None = None) -> None:
        """Make a value known: a Parameter, or with None something that carries neither weights nor data."""
        self._known[value] = {} if parameter is None else {parameter: Trail(Strength.WEIGHT, True)}

    def knows(self, value: Hashable) -> bool:
        """Whether the value came from Parameters, buffers and sizes alone."""
        return value in self._known

    def apply(self, name: str, operands: list[Any], data: list[Any], results: Iterable[Hashable]) -> None:
        """Follow one operation.

        Args:
            name: Its plain name.
            operands: All values it takes, in order.
            data: Those that it takes as data.
            results: The values it makes.
        """
        carried = {operand: self._known.get(operand) for operand in operands}
        for operand in data:
            trails = carried.get(operand)
            for parameter, trail in (trails or {}).items():
                if trail.strength == Strength.WEIGHT:
                    self._note(parameter, f"input of {name}")
            if trails is not None:
                carried[operand] = {p: trail.weakened(Strength.INPUT, False) for p, trail in trails.items()}
        for operand, trails in carried.items():
            meets_data = any(_is_data(other) for key, other in carried.items() if key is not operand)
            for parameter, trail in (trails or {}).items():
                if meets_data and operand not in data and _counts(name, trail.strength):
                    self._note(parameter, name)
                    if not trail.exact:
                        self.altered.add(parameter)
        kept = _carried_on(name, carried, operands)
        for result in results:
            if result in self._known:  # changed in place
                kept_zeros = name in _KEEPS_ZEROS
                self._known[result] = {p: t.weakened(t.strength, kept_zeros) for p, t in self._known[result].items()}
            elif kept is not None:
                self._known[result] = kept

    def _note(self, parameter: int, name: str) -> None:
        self.operations.setdefault(parameter, set()).add(name)


def _is_data(trails: Trails | None) -> bool:
    return trails is None or any(trail.strength < Strength.WEIGHT for trail in trails.values())


def _counts(name: str, strength: Strength) -> bool:
    """Whether meeting data in this operation says something about a Parameter."""
    if strength == Strength.WEIGHT:
        return True
    if name in _PRODUCTS:
        return strength == Strength.SELECTION
    return name in _WEIGHTED or name in _RECURRENT


def _carried_on(name: str, carried: dict[Any, Trails | None], operands: list[Any]) -> Trails | None:
    """What the result of an operation carries, None when it is data."""
    keeps_zeros = name in _KEEPS_ZEROS
    if name.startswith("new_") or name.endswith("_like"):
        return {}  # only shape, dtype and device of the operand
    if any(trails is None for trails in carried.values()):
        source = carried[operands[0]]
        if name not in _SELECTIONS or source is None:
            return None
        return {p: trail.weakened(Strength.SELECTION, keeps_zeros) for p, trail in source.items()}
    merged: Trails = {}
    for trails in carried.values():
        for parameter, trail in (trails or {}).items():
            merged[parameter] = merged.get(parameter, trail).weakened(trail.strength, trail.exact and keeps_zeros)
    weak = {parameter: trail for parameter, trail in merged.items() if trail.strength < Strength.WEIGHT}
    return weak or merged
