"""A proof, made while a network runs, that no example sees another.

A :class:`Rows` is a tensor whose axis 0 counts examples. Every operation on it is looked up in a table that says when
the result is again one row per example, made of that row alone; an operation or argument that the table does not know
raises :class:`NotByRowError`. Values cannot leave a ``Rows`` in any other way: it has no storage to read. So an output
that is a ``Rows`` proves that the program which made it worked row by row.

The table is keyed by the operations that PyTorch's own functions come down to. It is short on purpose: what is missing
costs speed, and nothing else.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import Tensor
from torch.utils._pytree import tree_flatten, tree_map

__all__ = ["NotByRowError", "Rows"]


class NotByRowError(Exception):
    """An operation that might mix examples."""


class Rows(torch.Tensor):
    """One row per example, seen by the proof; see the text above.

    Attributes:
        value: The tensor.
        fresh: Whether no noise has reached it yet, so that the rows of all samples are alike.
        history: The operations so far, in order, shared by all rows of one run.
    """

    value: Tensor
    fresh: bool
    history: list[Any]
    __torch_function__ = torch._C._disabled_torch_function_impl  # type: ignore[assignment]

    @classmethod
    def wrap(cls, value: Tensor, fresh: bool, history: list[Any]) -> Rows:
        """The tensor as rows."""
        rows = torch.Tensor._make_wrapper_subclass(
            cls, value.shape, strides=value.stride(), dtype=value.dtype, device=value.device
        )
        rows.value, rows.fresh, rows.history = value, fresh, history
        return rows

    @classmethod
    def __torch_dispatch__(cls, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:  # type: ignore[override]
        """Run an operation that the table allows."""
        kwargs = kwargs or {}
        leaves, structure = tree_flatten((args, kwargs))
        rows = [leaf for leaf in leaves if isinstance(leaf, Rows)]
        count, fresh = rows[0].shape[0], all(row.fresh for row in rows)
        name = func._schema.name.removeprefix("aten::")
        _check(func, name, count, args, kwargs, leaves)
        if _writes(func) and (not isinstance(args[0], Rows) or (args[0].fresh and not fresh)):
            raise NotByRowError(f"{func} writes rows into what has none, or noise into what had none")
        rows[0].history.append((str(func), str(structure), _described(name, leaves, count)))
        result = func(*tree_map(_value, args), **tree_map(_value, kwargs))
        if _writes(func):
            return args[0]
        history = rows[0].history
        if name in _FIRST_ONLY:
            return (Rows.wrap(result[0], fresh, history), *result[1:])

        def wrapped(item: Any) -> Any:
            if not isinstance(item, Tensor):
                return item
            if not item.ndim or item.shape[0] != count:
                raise NotByRowError(f"{func} changes the number of rows")
            return Rows.wrap(item, fresh, history)

        return tree_map(wrapped, result)

    def __repr__(self, *, tensor_contents: Any = None) -> str:  # type: ignore[override]
        return f"Rows({tuple(self.shape)}, fresh={self.fresh})"


def _writes(func: Any) -> bool:
    """Whether the operation changes its first argument."""
    return func._schema.is_mutable


def _check(func: Any, name: str, count: int, args: Any, kwargs: Any, leaves: list[Any]) -> None:
    """Raise unless the table allows the operation."""
    written = [a.alias_info is not None and a.alias_info.is_write for a in func._schema.arguments]
    if any(written[1:]):
        raise NotByRowError(f"{func} writes into an argument that is not its first")
    if torch.Tag.nondeterministic_seeded in func.tags:
        raise NotByRowError(f"{func} draws random numbers")
    if torch.Tag.pointwise in func.tags or name in _POINTWISE:
        allowed = _is_pointwise(leaves, count)
    else:
        rule = _RULES.get(name)
        named = dict(zip((a.name for a in func._schema.arguments), args, strict=False)) | kwargs
        allowed = rule is not None and rule(_Arguments(func._schema, named, count))
    if not allowed:
        raise NotByRowError(f"{func} is not known to keep examples apart here")


class _Arguments:
    """The arguments of an operation by name, with defaults."""

    def __init__(self, schema: Any, named: dict[str, Any], count: int) -> None:
        self._named = {a.name: named.get(a.name, a.default_value) for a in schema.arguments}
        self.count = count

    def __getitem__(self, name: str) -> Any:
        return self._named.get(name)

    def only_rows(self, *names: str) -> bool:
        """Whether exactly the named tensor arguments are rows."""
        return all(
            isinstance(value, Rows) == (name in names)
            for name, value in self._named.items()
            if isinstance(value, Tensor)
        )

    def inner(self, name: str, *axes: Any) -> bool:
        """Whether none of the axes is that of the rows; an axis that is not said means all of them."""
        ndim = self[name].ndim
        flat = [axis for given in axes for axis in (given if isinstance(given, Iterable) else [given])]
        return bool(flat) and all(isinstance(axis, int) and axis % ndim != 0 for axis in flat)


def _is_pointwise(leaves: list[Any], count: int) -> bool:
    """Rows span all axes of the result, and everything else is the same for every row."""
    tensors = [leaf for leaf in leaves if isinstance(leaf, Tensor)]
    ndim = max(tensor.ndim for tensor in tensors)
    return all(
        (tensor.ndim == ndim and tensor.shape[0] == count)
        if isinstance(tensor, Rows)
        else (tensor.ndim < ndim or tensor.shape[0] == 1)
        for tensor in tensors
    )


def _keeps_rows(size: str) -> Callable[[_Arguments], bool]:
    """A change of shape that leaves the rows as they are."""
    return lambda a: len(a[size]) > 0 and a[size][0] in (a.count, -1) and a["self"].shape[0] == a.count


def _along(*axes: str) -> Callable[[_Arguments], bool]:
    """An operation along axes that are not the rows."""
    return lambda a: a.only_rows("self") and a.inner("self", *(a[axis] for axis in axes))


#: Pointwise operations that PyTorch does not tag as such.
_POINTWISE = {"_to_copy", "_prelu_kernel", "hardswish", "hardswish_", "log_sigmoid_forward", "floor_divide", "detach",
              "alias", "copy_"}  # fmt: skip

#: Operations whose second argument is a size.
_RESHAPES = ("view", "_unsafe_view", "_reshape_alias", "expand")
#: Operations of which only the first result is one row per example.
_FIRST_ONLY = ("native_batch_norm", "_native_batch_norm_legit_no_training")
_FEW = 4096

#: Name of an operation -> whether it keeps rows apart with these arguments.
_RULES: dict[str, Callable[[_Arguments], bool]] = {
    # products with weights that are no rows
    "mm": lambda a: a.only_rows("self"),
    "addmm": lambda a: a.only_rows("mat1") and (a["self"].ndim < 2 or a["self"].shape[0] == 1),
    "linear": lambda a: a.only_rows("input"),
    "embedding": lambda a: a.only_rows("indices"),
    # norms with statistics of their own row, or fixed ones
    "native_layer_norm": lambda a: a.only_rows("input") and len(a["normalized_shape"]) < a["input"].ndim,
    "native_batch_norm": lambda a: a.only_rows("input") and a["training"] is False,
    "_native_batch_norm_legit_no_training": lambda a: a.only_rows("input"),
    # shapes
    "view": _keeps_rows("size"),
    "_unsafe_view": _keeps_rows("size"),
    "_reshape_alias": _keeps_rows("size"),
    "expand": lambda a: len(a["size"]) == a["self"].ndim,
    "permute": lambda a: a["dims"][0] % a["self"].ndim == 0,
    "transpose": _along("dim0", "dim1"),
    "unsqueeze": lambda a: a["dim"] % (a["self"].ndim + 1) != 0,
    "squeeze": _along("dim"),
    "slice": _along("dim"),
    "select": _along("dim"),
    "narrow": _along("dim"),
    "split": _along("dim"),
    "split_with_sizes": _along("dim"),
    "unbind": _along("dim"),
    "cat": lambda a: all(isinstance(t, Rows) for t in a["tensors"]) and a["dim"] % a["tensors"][0].ndim != 0,
    "stack": lambda a: all(isinstance(t, Rows) for t in a["tensors"]) and a["dim"] % (a["tensors"][0].ndim + 1) != 0,
    # within a row
    **{name: _along("dim") for name in ("_softmax", "_log_softmax", "sum", "mean", "var", "std", "amax", "amin", "max",
                                        "min", "argmax", "argmin", "logsumexp", "linalg_vector_norm", "prod", "cumsum",
                                        "topk", "sort", "any", "all")},
}  # fmt: skip


def _value(item: Any) -> Any:
    return item.value if isinstance(item, Rows) else item


def _described(name: str, leaves: list[Any], count: int) -> list[Any]:
    """The arguments as the history keeps them, the number of rows, which differs from run to run, left out."""
    found: list[Any] = []
    for place, leaf in enumerate(leaves):
        if isinstance(leaf, Rows):
            found.append(("rows", *leaf.shape[1:]))
        elif isinstance(leaf, Tensor):
            found.append(_fingerprint(leaf))
        else:
            found.append("number of rows" if place == 1 and name in _RESHAPES and leaf == count else leaf)
    return found


def _fingerprint(tensor: Tensor) -> Any:
    """Tells whether a tensor is the same in two runs: by its values, or where there are many by its place."""
    if tensor.numel() > _FEW:
        return (*tensor.shape, tensor.untyped_storage().data_ptr())
    return (*tensor.shape, float(tensor.sum()), float(torch.linalg.vector_norm(tensor.double())))
