"""Copies of a user's model: a whole one to convert, and a hollow one to look at."""

from __future__ import annotations

import copy
from collections import OrderedDict
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.nn.utils.prune import is_pruned
from torch.overrides import TorchFunctionMode

from bensemble.errors import ConversionError, InvalidValueError

__all__ = ["check_shapes", "check_unmasked", "copy_model", "hollow_copy", "traced_copy"]

M = TypeVar("M", bound=nn.Module)


def check_shapes(verb: str, model: nn.Module) -> None:
    """Raise for lazy modules that no forward has given a shape.

    Raises:
        ConversionError: A parameter or buffer has no shape.
    """
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if nn.parameter.is_lazy(tensor):
            raise ConversionError(f"{verb}: '{name}' has no shape yet; run the model once first.")


def check_unmasked(verb: str, model: nn.Module) -> None:
    """Raise for masks of torch.nn.utils.prune: they hide the weight, which is neither counted nor removed then.

    Raises:
        InvalidValueError: There is a mask.
    """
    if is_pruned(model):
        raise InvalidValueError(
            f"{verb}: model must hold its weights as parameters, got masks of torch.nn.utils.prune; call "
            "torch.nn.utils.prune.remove(layer, 'weight') on each: the zeros stay."
        )


def copy_model(verb: str, model: M) -> M:
    """A deep copy; tensors with a history, such as activations that a module keeps, are copied detached.

    Raises:
        ConversionError: the model cannot be copied; names the cure.
    """
    try:
        with torch.no_grad():  # a ScriptModule would copy its parameters into a graph
            copied = _deep_copy(model, _memo(model))
    except Exception as err:
        raise ConversionError(
            f"{verb}: {type(model).__name__} cannot be copied ({err}); pass inplace=True to change the model itself."
        ) from err
    for module, twin in zip(model.modules(), copied.modules(), strict=False):
        if isinstance(module, torch.jit.ScriptModule):
            for parameter, other in zip(module.parameters(), twin.parameters(), strict=True):
                other.requires_grad_(parameter.requires_grad)
    return copied


def hollow_copy(model: M) -> M | None:
    """The module tree without its weights: modules and buffers are copied, Parameters are those of the model.

    Running it cannot change the model's buffers or attributes. None when the model cannot be copied.
    """
    memo = _memo(model)
    memo |= {id(buffer): buffer.detach().clone() for buffer in model.buffers()}
    memo |= {id(parameter): parameter for parameter in model.parameters()}
    try:
        return _deep_copy(model, memo)
    except Exception:
        return None


def traced_copy(model: M) -> tuple[M, dict[int, int]] | None:
    """A deep copy to run, and the identity of each original Parameter by that of its copy.

    A forward may write into Parameters, so it runs on copies of them. None when the model cannot be copied.
    """
    memo = _memo(model)
    try:
        copied = _deep_copy(model, memo)
    except Exception:
        return None
    return copied, {id(memo[id(p)]): id(p) for p in model.parameters() if id(p) in memo}


def _deep_copy(model: M, memo: dict[int, Any]) -> M:
    """``copy.deepcopy``, and once more where it meets a tensor with a history: to look out for them takes longer."""
    known = dict(memo)
    try:
        return copy.deepcopy(model, memo)
    except RuntimeError:
        memo.clear()
        memo |= known
        with _WithoutHistory():
            return copy.deepcopy(model, memo)


class _WithoutHistory(TorchFunctionMode):
    """Lets ``copy.deepcopy`` take tensors with a history, wherever they are held: their values are copied."""

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func is Tensor.__deepcopy__ and not args[0].is_leaf:
            tensor, memo = args
            memo[id(tensor)] = tensor.detach().clone()
            return memo[id(tensor)]
        return func(*args, **(kwargs or {}))


def _memo(model: nn.Module) -> dict[int, Any]:
    """The empty dictionaries of hooks that every module has: ``copy.deepcopy`` takes half of its time for them."""
    return {
        id(value): OrderedDict()
        for module in model.modules()
        for value in module.__dict__.values()
        if type(value) is OrderedDict and not value
    }
