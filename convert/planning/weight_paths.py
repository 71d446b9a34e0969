"""Where Parameters go: through operations on weights alone, up to the operations where they meet data.

The question is whether a Parameter is a weight of a linear operation. A matrix that multiplies data is one. A table of
positions that is added to data is not, and neither is a token or a query that a layer takes as its *input*.
So every value has a strength for each Parameter that it comes from: a weight is computed from Parameters alone, a
selection was picked from one by the data (the weights of an expert, a row of a table), an input went through a layer as
its data.
"""

from __future__ import annotations

import re
from collections.abc import Hashable, Iterable, Mapping, Sequence
from enum import IntEnum
from typing import Any, NamedTuple

from torch.overrides import resolve_name

from bensemble.torch_internals import OpOverload

__all__ = ["LINEAR_OPERATIONS", "Trails", "data_arguments", "operation_name", "plain_name", "writes_in_place"]

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
# fmt: off
_KEEPS_ZEROS = frozenset([
    "alias", "as_strided", "bfloat16", "cat", "chunk", "clone", "contiguous", "detach", "double", "expand", "expand_as",
    "flatten", "flip", "float", "gather", "get", "getattr", "getitem", "half", "index_select", "movedim", "mul",
    "narrow", "neg", "permute", "repeat", "requires_grad", "reshape", "reshape_as", "select", "split", "squeeze",
    "stack", "swapaxes", "swapdims", "t", "take_along_dim", "tensor_split", "to", "transpose", "type", "type_as",
    "unbind", "unflatten", "unsafe_view", "unsqueeze", "view", "view_as",
])
# fmt: on
#: Operations that pick entries of their first operand by the others.
_SELECTIONS = frozenset(["getitem", "index_select", "gather", "take_along_dim", "index", "take"])
_SYNONYMS = {
    **dict.fromkeys(("rmatmul", "imatmul"), "matmul"),
    **dict.fromkeys(("rmul", "imul", "multiply"), "mul"),
    **dict.fromkeys(("spmm", "smm"), "mm"),  # torch.mm and torch.spmm are one function
}


class Strength(IntEnum):
    """How much of a weight a value still is."""

    INPUT = 1
    SELECTION = 2
    WEIGHT = 3


class Origin(NamedTuple):
    """One Parameter that a value comes from.

    Attributes:
        strength: Whether the value is still a weight.
        exact: Whether a zero in the Parameter is a zero in the value.
    """

    strength: Strength
    exact: bool

    def after(self, strength: Strength, exact: bool) -> Origin:
        """The origin after a step that leaves at most this much."""
        return Origin(min(self.strength, strength), self.exact and exact)


#: What a value comes from, by identity of the Parameter; None for data.
Origins = dict[int, Origin]


def plain_name(name: str) -> str:
    """``__rmatmul__``, ``mul_`` and ``_native_x`` as ``matmul``, ``mul`` and ``native_x``."""
    stripped = name.strip("_")
    return _SYNONYMS.get(stripped, stripped)


def operation_name(operation: Any) -> str:
    """The plain name of a function, a method, or the name of a method."""
    if isinstance(operation, OpOverload):
        return plain_name(operation.overloadpacket.__name__)
    name = operation if isinstance(operation, str) else resolve_name(operation) or getattr(operation, "__name__", "")
    return plain_name(name.rpartition(".")[2])


def writes_in_place(name: str) -> bool:
    """Whether a method of this name changes its tensor."""
    if name.endswith("__"):
        return re.fullmatch("__i(add|sub|mul|truediv|div|pow)__", name) is not None
    return name.endswith("_") and name not in ("requires_grad_", "detach_", "share_memory_")


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


class Trails:
    """The trails of all Parameters: what each value seen so far comes from. A value that is not known is data.

    Attributes:
        operations: By identity of a Parameter, the names of the operations where it meets data.
        altered: Identities of Parameters that are computed with first, so that a zero may not stay a zero.
    """

    def __init__(self, operations: dict[int, set[str]], altered: set[int]) -> None:
        self.operations = operations
        self.altered = altered
        self._known: dict[Hashable, Origins] = {}

    def start(self, value: Hashable, parameter: int | None = None) -> None:
        """Make a value known: a Parameter, or with None something that carries neither weights nor data."""
        self._known[value] = {} if parameter is None else {parameter: Origin(Strength.WEIGHT, True)}

    def knows(self, value: Hashable) -> bool:
        """Whether the value comes from Parameters, buffers and sizes alone."""
        return value in self._known

    def apply(self, name: str, operands: list[Any], data: list[Any], results: Iterable[Hashable]) -> None:
        """Follow one operation.

        Args:
            name: Its plain name.
            operands: All values it takes, in order.
            data: Those that it takes as data.
            results: The values it makes.
        """
        origins = {operand: self._known.get(operand) for operand in operands}
        for operand in data:
            origins[operand] = self._taken_as_data(name, self._known.get(operand))
        self._note_meetings(name, origins, data)
        combined = _combined(name, origins, operands[0] if operands else None)
        for result in results:
            if result in self._known:  # changed in place
                self._known[result] = _weakened(self._known[result], Strength.WEIGHT, name in _KEEPS_ZEROS)
            elif combined is not None:
                self._known[result] = combined

    def _taken_as_data(self, name: str, origins: Origins | None) -> Origins | None:
        """Note the Parameters that an operation takes as its data. What it makes of them is no weight any more."""
        if origins is None:
            return None
        for parameter, origin in origins.items():
            if origin.strength == Strength.WEIGHT:
                self._note(parameter, f"input of {name}")
        return _weakened(origins, Strength.INPUT, False)

    def _note_meetings(self, name: str, origins: dict[Any, Origins | None], data: list[Any]) -> None:
        """Note the Parameters that meet data in an operation, other than as its data."""
        for operand, own in origins.items():
            if operand in data or not any(_is_data(other) for key, other in origins.items() if key != operand):
                continue
            for parameter, origin in (own or {}).items():
                if _counts(name, origin.strength):
                    self._note(parameter, name)
                    if not origin.exact:
                        self.altered.add(parameter)

    def _note(self, parameter: int, name: str) -> None:
        self.operations.setdefault(parameter, set()).add(name)


def _is_data(origins: Origins | None) -> bool:
    return origins is None or any(origin.strength < Strength.WEIGHT for origin in origins.values())


def _counts(name: str, strength: Strength) -> bool:
    """Whether meeting data in this operation says something about a Parameter."""
    if strength == Strength.WEIGHT:
        return True
    if name in _PRODUCTS:
        return strength == Strength.SELECTION
    return name in _WEIGHTED or name in _RECURRENT


def _weakened(origins: Origins, strength: Strength, exact: bool) -> Origins:
    return {parameter: origin.after(strength, exact) for parameter, origin in origins.items()}


def _combined(name: str, origins: dict[Any, Origins | None], first: Any) -> Origins | None:
    """What the result of an operation comes from, None when it is data."""
    if name.startswith("new_") or name.endswith("_like"):
        return {}  # only shape, dtype and device of the operand
    keeps_zeros = name in _KEEPS_ZEROS
    if any(own is None for own in origins.values()):
        source = origins[first] if name in _SELECTIONS else None
        return None if source is None else _weakened(source, Strength.SELECTION, keeps_zeros)
    merged: Origins = {}
    for own in origins.values():
        for parameter, origin in (own or {}).items():
            merged[parameter] = merged.get(parameter, origin).after(origin.strength, origin.exact and keeps_zeros)
    weak = {parameter: origin for parameter, origin in merged.items() if origin.strength < Strength.WEIGHT}
    return weak or merged
