"""What this toolkit needs of torch and torch does not offer publicly, in one place, each with its reason.

Nothing else in ``bensemble`` or ``convert`` names a private attribute of torch; a test counts them. Where torch has a
public way one day, it belongs here first.
"""

from __future__ import annotations

import sys
import threading
from collections import OrderedDict
from collections.abc import Iterator
from types import FrameType
from typing import Any

import torch
import torch.distributed as dist
from torch import Tensor, nn
from torch._ops import OpOverload  # the type of torch.ops.aten.add.Tensor, which has no public name
from torch.nn.modules.batchnorm import _NormBase as BatchNormBase  # batch and instance norms of all dimensions
from torch.nn.modules.conv import _ConvNd as ConvBase  # convolutions of all dimensions, transposed ones too
from torch.utils import _pytree as pytree  # nested containers with torch's own registrations, as torch.func sees them

__all__ = [
    "NO_TORCH_FUNCTION",
    "BatchNormBase",
    "ConvBase",
    "OpOverload",
    "argument_schema",
    "buffers_of",
    "callers",
    "children_of",
    "clear_forward_hooks",
    "convolve",
    "default_store",
    "flat_inputs",
    "flat_weights_of",
    "forget_tracer",
    "forward_pre_hooks",
    "has_forward_hooks",
    "is_compiled",
    "is_foreign_thread",
    "is_shared_lazily",
    "is_view",
    "lazy_clone",
    "load_hooks_of",
    "output_padding",
    "parameter_of",
    "parameters_of",
    "persistent_buffers_of",
    "pytree",
    "renew_flat_weights",
    "replace_parameters",
    "state_versions",
    "storage_key",
    "transforms_active",
    "version",
    "with_versions",
    "wrapper_tensor",
]

# -- modules: named_parameters() hands out no None, follows no replaced dictionary, and cannot be written to


def parameters_of(module: nn.Module) -> dict[str, Any]:
    """The dictionary in which a module keeps its Parameters, None for those that it does without."""
    return module._parameters


def replace_parameters(module: nn.Module, parameters: dict[str, Any]) -> None:
    """Let a module keep its Parameters in another dictionary, past a ``__setattr__`` of the user's own."""
    module.__dict__["_parameters"] = parameters


def buffers_of(module: nn.Module) -> dict[str, Any]:
    """The dictionary in which a module keeps its buffers."""
    return module._buffers


def persistent_buffers_of(module: nn.Module) -> dict[str, Tensor]:
    """The buffers of a module that its state dict holds."""
    hidden = module._non_persistent_buffers_set
    return {name: buffer for name, buffer in module._buffers.items() if buffer is not None and name not in hidden}


def state_versions(state: Any) -> dict[str, dict[str, Any]]:
    """What modules noted in a state dict beside their tensors, by path, such as versions."""
    return getattr(state, "_metadata", None) or {}


def with_versions(state: dict[str, Tensor], versions: dict[str, dict[str, Any]]) -> dict[str, Tensor]:
    """A state dict with such notes."""
    noted: Any = OrderedDict(state)
    noted._metadata = OrderedDict(versions)
    return noted


def children_of(module: nn.Module) -> dict[str, Any]:
    """The dictionary in which a module keeps its children."""
    return module._modules


#: How modules answer for their Parameters, unless somebody stands in between, as torch.fx does while it traces.
_UNWATCHED = nn.Module.__getattr__


def parameter_of(module: nn.Module, name: str) -> Any:
    """A Parameter of a module in a third of the time that attributes take; None without one.

    The attribute has the last word where something else stands in the Parameter's place, and while torch.fx traces.
    """
    found = module._parameters.get(name) if nn.Module.__getattr__ is _UNWATCHED else None
    return getattr(module, name, None) if found is None else found


def load_hooks_of(module: nn.Module) -> dict[Any, Any]:
    """The hooks that run before a module loads its state; torch can add them, not hold them back."""
    return module._load_state_dict_pre_hooks


def has_forward_hooks(module: nn.Module) -> bool:
    """Whether hooks run before or after the forward of a module; torch can add them, not list them."""
    return bool(module._forward_hooks or module._forward_pre_hooks)


def forward_pre_hooks(module: nn.Module) -> list[Any]:
    """The hooks that run before the forward of a module."""
    return list(module._forward_pre_hooks.values())


def clear_forward_hooks(module: nn.Module) -> None:
    """Take the hooks off that run before and after the forward of a module, a copy of the user's."""
    module._forward_hooks.clear()
    module._forward_pre_hooks.clear()


def flat_weights_of(module: nn.RNNBase) -> list[Tensor]:
    """The weights of a recurrent layer in the order in which its forward reads them."""
    return [getattr(module, name) for name in module._flat_weights_names]


def renew_flat_weights(module: nn.RNNBase) -> None:
    """Let a recurrent layer list its weights anew: it keeps the list beside its Parameters."""
    module._flat_weights = list(flat_weights_of(module))


def convolve(module: Any, input: Tensor, weight: Tensor, bias: Tensor | None) -> Tensor:
    """The convolution that a module computes, padding mode included, with another weight and bias."""
    return module._conv_forward(input, weight, bias)


def output_padding(module: Any, input: Tensor, output_size: list[int] | None, ndim: int) -> list[int]:
    """What a transposed convolution adds to one side of its output, so that it has the size asked for."""
    return module._output_padding(
        input, output_size, module.stride, module.padding, module.kernel_size, ndim, module.dilation
    )


def is_compiled(model: nn.Module) -> bool:
    """Whether torch.compile runs the model or a module in it, so that its operations cannot be watched."""
    return any(m._compiled_call_impl is not None or "_orig_mod" in m._modules for m in model.modules())


# -- graphs


def flat_inputs(exported: Any, args: tuple[Any, ...], kwargs: dict[str, Any]) -> list[Any]:
    """The arguments of a call as a module made by torch.export numbers them."""
    return exported._in_spec.flatten_up_to((args, kwargs))


def forget_tracer(graph: Any) -> None:
    """Let a pickled torch.fx graph be traced again by torch's own tracer, the only one that is there everywhere."""
    graph._tracer_cls = None


# -- tensors


def version(tensor: Tensor) -> int:
    """A number that every write in place changes; inference tensors do not count their writes."""
    return -1 if tensor.is_inference() else tensor._version


def is_view(tensor: Tensor) -> bool:
    """Whether a tensor is a view of another one, which an autograd function may not hand out to be written to."""
    return tensor._is_view()


def storage_key(tensor: Tensor) -> int:
    """What tells the memory of a tensor from other memory, on the meta device too, where it has no address."""
    return tensor.untyped_storage()._cdata


def lazy_clone(tensor: Tensor) -> Tensor | None:
    """A copy whose memory is that of the tensor until one of both is written to; None where memory cannot be shared."""
    if (
        not tensor.untyped_storage().resizable()
    ):  # memory without an allocator, as torch.load gives: no write can copy it
        return None
    try:
        return tensor._lazy_clone()
    except RuntimeError:  # memory that torch did not allocate, such as an array of numpy
        return None


def is_shared_lazily(tensor: Tensor) -> bool:
    """Whether a tensor and its lazy clone have not been written to since."""
    return bool(torch._C._is_cow_tensor(tensor))  # type: ignore[attr-defined]


#: For tensor subclasses: operations come to ``__torch_dispatch__`` alone, and autograd sees an ordinary tensor.
NO_TORCH_FUNCTION: Any = torch._C._disabled_torch_function_impl


def wrapper_tensor(cls: type[Tensor], like: Tensor) -> Any:
    """A tensor of a subclass with the metadata of another one and no memory of its own."""
    return torch.Tensor._make_wrapper_subclass(
        cls, like.shape, strides=like.stride(), dtype=like.dtype, device=like.device
    )


def argument_schema(operation: Any) -> Any:
    """The schema of an operation of torch: its name, and which arguments it writes into or returns views of."""
    return operation._schema


# -- what is going on


class _Probe(torch.autograd.Function):
    """A Function without a rule for torch.func, which therefore refuses it."""

    @staticmethod
    def forward(ctx: Any, value: None) -> None:
        """Nothing."""

    @staticmethod
    def backward(ctx: Any, *grads: Any) -> None:
        """Nothing."""


def transforms_active() -> bool:
    """Whether a transform of torch.func (vmap, grad, jvp) sees the operations; takes some microseconds.

    torch has no question for it. A Function of the plain kind is refused inside of one.
    """
    try:
        _Probe.apply(None)
    except RuntimeError:
        return True
    return False


def default_store() -> Any:
    """The key-value store that the processes of the default group met by; torch has no other way to one."""
    return dist.distributed_c10d._get_default_store()


def callers() -> Iterator[FrameType]:
    """The functions that called the one that asks, from the inside out.

    Some utilities of torch do to a posterior what only their own code tells from a legal assignment or look-up.
    """
    return _outwards(sys._getframe(2))


def _outwards(frame: FrameType | None) -> Iterator[FrameType]:
    while frame is not None:
        yield frame
        frame = frame.f_back


def is_foreign_thread() -> bool:
    """Whether Python did not start this thread: autograd runs the backward pass of an accelerator in such ones."""
    return isinstance(threading.current_thread(), threading._DummyThread)
