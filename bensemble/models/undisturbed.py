"""Trial runs leave no trace: whatever a forward does or raises, everything it could reach is put back.

Put back, bit for bit: the values, storage, gradient and flags of every parameter and buffer; what every module holds in
its ``__dict__``, through lists, dictionaries, sets, arrays and objects of users' classes; the random states of torch,
Python and numpy; gradient mode, default dtype and device, and autocast. Not put back are globals of Python, files,
attributes in ``__slots__``, the address of memory that was written to, the values of sparse and sharded tensors, and
what else a program writes to.
"""

from __future__ import annotations

import random
import sys
import types
import warnings
from collections import OrderedDict, deque
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from operator import is_
from typing import Any

import torch
from torch import Tensor, nn

from ..torch_internals import is_shared_lazily, lazy_clone, storage_key

__all__ = ["Snapshot", "undisturbed", "unwritten"]

_INTEGERS = {2: torch.int16, 4: torch.int32, 8: torch.int64}
_CONSTANTS = frozenset({type(None), bool, int, float, complex, str, bytes, torch.dtype, torch.device, torch.Size})
_ATOMS = (type, types.ModuleType, types.FunctionType, types.BuiltinFunctionType, types.MethodType)


@contextmanager
def undisturbed(*models: nn.Module | Tensor) -> Iterator[None]:
    """Run trials of models without gradients and warnings, and put everything back at the end.

    No other thread may train the models meanwhile: its steps would be taken back.
    """
    restore = _global_state()
    try:
        with unwritten(*models), torch.random.fork_rng(), torch.no_grad(), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        restore()


@contextmanager
def unwritten(*models: nn.Module | Tensor) -> Iterator[None]:
    """Put back what the models hold, and nothing else: for passes over data whose random numbers go on."""
    before = Snapshot(*models)
    try:
        yield
    finally:
        before.restore()
        before.release()


class Snapshot:
    """What models hold now.

    Values are copied when they are written to, not before: most trials write to none.

    Args:
        models: The models, or tensors alone; a tensor or object that they share is held once.
    """

    def __init__(self, *models: nn.Module | Tensor) -> None:
        self._restores: list[Callable[[], object]] = []
        self._tensors: list[_Held] = []
        seen: dict[int, Any] = {}  # holding the objects keeps their identities valid
        waiting: list[Any] = list(models)
        while waiting:
            value = waiting.pop()
            if type(value) not in _CONSTANTS and id(value) not in seen:
                seen[id(value)] = value
                waiting += self._hold(value)

    def restore(self) -> None:
        """Put back everything that has changed."""
        for restore in self._restores:
            restore()

    def release(self) -> None:
        """Hold nothing any more."""
        self._restores.clear()
        while self._tensors:
            self._tensors.pop().release()

    def _hold(self, value: Any) -> list[Any]:
        """Remember one object; returns what it holds itself."""
        if isinstance(value, Tensor):
            self._tensors.append(_Held(value))
            self._restores.append(self._tensors[-1].restore)
            return [] if not value.is_leaf or value.grad is None else [value.grad]
        if isinstance(value, dict):
            entries = dict(value.items())
            self._restores.append(partial(_restore_dict, value, entries))
            return list(entries.values())
        if isinstance(value, (list, deque, set)):
            items = list(value)
            self._restores.append(partial(_restore_items, value, items))
            return items
        if isinstance(value, (tuple, frozenset)):
            return list(value)
        if isinstance(value, nn.Module):  # the most frequent of what follows
            return [value.__dict__]
        if isinstance(value, torch.Generator):
            self._restores.append(partial(value.set_state, value.get_state()))
            return []
        if isinstance(value, random.Random):
            self._restores.append(partial(value.setstate, value.getstate()))
            return []
        if type(value).__module__ == "numpy" and type(value).__name__ == "ndarray":
            self._restores.append(partial(value.__setitem__, ..., value.copy()))
            return []
        return [value.__dict__] if _is_open(value) else []


def _is_open(value: Any) -> bool:
    """Whether to look into an object: a namespace, or an instance of a class that a user may have written."""
    if isinstance(value, types.SimpleNamespace):
        return True
    library = type(value).__module__.partition(".")[0]
    closed = (library in sys.stdlib_module_names and library != "__main__") or library in ("torch", "numpy")
    return not closed and not isinstance(value, _ATOMS) and isinstance(getattr(value, "__dict__", None), dict)


class _Held:
    """Storage, values, flag and gradient of one tensor; what did not change is not written."""

    def __init__(self, tensor: Tensor) -> None:
        self.tensor, self.alias, self.needs = tensor, tensor.detach(), tensor.requires_grad
        self.place, self.grad = _place(tensor), tensor.grad if tensor.is_leaf else None
        self.lazy = lazy_clone(self.alias) if _has_values(tensor) else None
        self.values = self.alias.clone() if _has_values(tensor) and self.lazy is None else self.lazy

    def restore(self) -> None:
        tensor, leaf = self.tensor, self.tensor.is_leaf
        moved = self.values is not None and _place(tensor) != self.place
        written = self.values is not None and (self.lazy is None or not is_shared_lazily(self.alias))
        switched, graded = leaf and tensor.requires_grad != self.needs, leaf and tensor.grad is not self.grad
        if not (moved or written or switched or graded):
            return
        with torch.inference_mode(tensor.is_inference()), torch.no_grad():
            if moved:
                tensor.data = self.alias
            if self.values is not None and written and not _same_bits(self.alias, self.values):
                self.alias.copy_(self.values)
            if switched:
                tensor.requires_grad_(self.needs)
            if graded:
                tensor.grad = self.grad

    def release(self) -> None:
        lazy, self.lazy, self.values = self.lazy is not None, None, None
        if lazy:  # the only one to hold the memory: it is an ordinary tensor again, without a copy
            self.alias.data_ptr()


def _has_values(tensor: Tensor) -> bool:
    """Whether a tensor is a plain one or a Parameter, with values in one piece of memory."""
    plain = type(tensor) is Tensor or issubclass(type(tensor), nn.Parameter)
    return plain and tensor.layout == torch.strided and not tensor.is_meta and not nn.parameter.is_lazy(tensor)


def _place(tensor: Tensor) -> Any:
    if not _has_values(tensor):
        return None
    return storage_key(tensor), tensor.storage_offset(), tensor.shape, tensor.stride(), tensor.dtype, tensor.device


def _same_bits(one: Tensor, other: Tensor) -> bool:
    integers = _INTEGERS.get(one.element_size(), torch.uint8)
    first, second = (tensor.contiguous().reshape(-1).view(integers) for tensor in (one, other))
    return torch.equal(first, second)


def _restore_dict(value: dict[Any, Any], entries: dict[Any, Any]) -> None:
    kind: Any = OrderedDict if isinstance(value, OrderedDict) else dict  # a subclass may forbid what is needed here
    same = len(value) == len(entries) and all(map(is_, kind.keys(value), entries))
    if same and all(map(is_, kind.values(value), entries.values())):
        return
    kind.clear(value)
    for key, item in entries.items():
        kind.__setitem__(value, key, item)


def _restore_items(value: Any, items: list[Any]) -> None:
    now = list(value)
    if len(now) != len(items) or any(a is not b for a, b in zip(now, items, strict=True)):
        value.clear()
        value.update(items) if isinstance(value, set) else value.extend(items)


def _global_state() -> Callable[[], object]:
    """A function that puts back what torch and Python hold for the whole program or thread."""
    python, dtype, device = random.getstate(), torch.get_default_dtype(), torch.get_default_device()
    gradients, cache = torch.is_grad_enabled(), torch.is_autocast_cache_enabled()
    casts = [(kind, torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in ("cpu", "cuda")]
    depth = torch.autocast_increment_nesting() - 1
    torch.autocast_decrement_nesting()
    numpy = sys.modules.get("numpy")
    drawn = numpy.random.get_state() if numpy is not None else None

    def restore() -> None:
        random.setstate(python)
        if numpy is not None:
            numpy.random.set_state(drawn)
        torch.set_grad_enabled(gradients)
        torch.set_default_dtype(dtype)
        if torch.get_default_device() != device:
            torch.set_default_device(None if device.type == "cpu" else device)
        for kind, enabled, precision in casts:
            torch.set_autocast_enabled(kind, enabled)
            torch.set_autocast_dtype(kind, precision)
        torch.set_autocast_cache_enabled(cache)
        _restore_depth(depth)

    return restore


def _restore_depth(depth: int) -> None:
    """Leave the autocast contexts that were entered and not left; what they cast may be of other weights."""
    while torch.autocast_increment_nesting() - 1 > depth:
        torch.autocast_decrement_nesting()
        torch.autocast_decrement_nesting()
    torch.autocast_decrement_nesting()
    torch.clear_autocast_cache()
