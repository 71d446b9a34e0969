"""Calls of torch.nn modules: their tensors become operands, and the rule of the function they stand for answers."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import nn

from ..calls import Call
from ..domain import Value
from ..flow import Flow
from . import attention, joining, movement, pooling, products, slicing
from .elementwise import combine
from .lookup import module_rule
from .normalisation import along_channels, batch_norm_values, batch_statistics, group_norm_values, layer_norm_values

__all__: list[str] = []

#: Modules by the number of trailing axes that hold positions.
DIMENSIONS: dict[int, tuple[type[nn.Module], ...]] = {
    1: (
        *(nn.MaxPool1d, nn.AvgPool1d, nn.AdaptiveAvgPool1d, nn.AdaptiveMaxPool1d),
        *(nn.ReflectionPad1d, nn.ReplicationPad1d, nn.CircularPad1d),
    ),
    2: (
        *(nn.MaxPool2d, nn.AvgPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d),
        *(nn.ReflectionPad2d, nn.ReplicationPad2d, nn.CircularPad2d),
    ),
    3: (
        *(nn.MaxPool3d, nn.AvgPool3d, nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool3d),
        *(nn.ReflectionPad3d, nn.ReplicationPad3d, nn.CircularPad3d),
    ),
}


def _tensor(flow: Flow, path: str, module: nn.Module, name: str) -> Value | None:
    """A parameter or buffer of the called module."""
    return flow.leaf(f"{path}.{name}" if path else name) if getattr(module, name, None) is not None else None


def _input(call: Call) -> Value:
    return call.operands[0]


@module_rule(nn.Linear)
def linear(flow: Flow, call: Call, module: nn.Linear, path: str) -> Any:
    """Linear."""
    weight, bias = _tensor(flow, path, module, "weight"), _tensor(flow, path, module, "bias")
    return products.linear(flow, replace(call, name="linear", args=(_input(call), weight, bias), kwargs={}))


@module_rule(nn.Conv1d, nn.Conv2d, nn.Conv3d)
def convolution(flow: Flow, call: Call, module: Any, path: str) -> Any:
    """Convolution; a border of copies is no zero padding."""
    weight, bias = _tensor(flow, path, module, "weight"), _tensor(flow, path, module, "bias")
    padding = module.padding if module.padding_mode == "zeros" else 0
    args = (_input(call), weight, bias, module.stride, padding, module.dilation, module.groups)
    return products.convolution(flow, replace(call, name="conv2d", args=args, kwargs={}))


@module_rule(nn.ConvTranspose1d, nn.ConvTranspose2d, nn.ConvTranspose3d)
def transposed_convolution(flow: Flow, call: Call, module: Any, path: str) -> Any:
    """Transposed convolution without a given output size."""
    if len(call.operands) != 1 or len(call.args) + len(call.kwargs) != 1:
        return flow.unknown(call, "a transposed convolution with a given output size")
    weight, bias = _tensor(flow, path, module, "weight"), _tensor(flow, path, module, "bias")
    args = (_input(call), weight, bias, module.stride, module.padding, module.output_padding, module.groups)
    return products.transposed_convolution(flow, replace(call, name="conv_transpose2d", args=args, kwargs={}))


@module_rule(nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d, nn.SyncBatchNorm)
@module_rule(nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d)
def batch_norm(flow: Flow, call: Call, module: Any, path: str) -> Any:
    """Norm by channel."""
    names = ("running_mean", "running_var", "weight", "bias")
    mean, var, weight, bias = (_tensor(flow, path, module, name) for name in names)
    if mean is None or var is None:
        return batch_statistics(flow, call, _input(call), weight, bias)
    return batch_norm_values(flow, call, _input(call), mean, var, weight, bias, module.eps)


@module_rule(nn.LayerNorm, nn.RMSNorm)
def layer_norm(flow: Flow, call: Call, module: Any, path: str) -> Any:
    """Norm over the last axes."""
    weight, bias = _tensor(flow, path, module, "weight"), _tensor(flow, path, module, "bias")
    return layer_norm_values(flow, call, _input(call), len(module.normalized_shape), weight, bias)


@module_rule(nn.GroupNorm)
def group_norm(flow: Flow, call: Call, module: nn.GroupNorm, path: str) -> Any:
    """Norm over groups of channels."""
    weight, bias = _tensor(flow, path, module, "weight"), _tensor(flow, path, module, "bias")
    return group_norm_values(flow, call, _input(call), module.num_groups, weight, bias, module.eps)


@module_rule(nn.PReLU)
def prelu(flow: Flow, call: Call, module: nn.PReLU, path: str) -> Any:
    """max(x, 0) + w min(x, 0) with one w, or one per channel."""
    x, weight = _input(call), flow.leaf(f"{path}.weight")
    slope = along_channels(flow, weight, x.ndim) if module.num_parameters > 1 else weight
    return combine(flow, [x, slope], call.shape, lambda x, w: x.clamp(min=0) + w * x.clamp(max=0))


@module_rule(nn.Embedding)
def embedding(flow: Flow, call: Call, module: nn.Embedding, path: str) -> Any:
    """Rows of a table."""
    if module.max_norm is not None:
        return flow.unknown(call, "embedding that renormalises its table")
    args = (_input(call), flow.leaf(f"{path}.weight"))
    return attention.embedding(flow, replace(call, name="embedding", args=args, kwargs={}))


@module_rule(
    *(nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.Sigmoid, nn.Tanh, nn.GELU, nn.SiLU, nn.Mish),
    *(nn.ELU, nn.SELU, nn.CELU, nn.LeakyReLU, nn.Softplus, nn.Softsign, nn.LogSigmoid, nn.Tanhshrink, nn.Softshrink),
    *(nn.Hardshrink, nn.Threshold),
)
def activation(flow: Flow, call: Call, module: nn.Module, path: str) -> Any:
    """f(x)."""
    return combine(flow, [_input(call)], call.shape, call.run)


@module_rule(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout, nn.Identity)
def identity(flow: Flow, call: Call, module: nn.Module, path: str) -> Any:
    """x, in evaluation."""
    return flow.operand(_input(call))


@module_rule(nn.MaxPool1d, nn.MaxPool2d, nn.MaxPool3d)
@module_rule(nn.AdaptiveAvgPool1d, nn.AdaptiveAvgPool2d, nn.AdaptiveAvgPool3d)
@module_rule(nn.AdaptiveMaxPool1d, nn.AdaptiveMaxPool2d, nn.AdaptiveMaxPool3d)
def pool(flow: Flow, call: Call, module: nn.Module, path: str) -> Any:
    """The largest value or the mean of what a window sees of the image."""
    return pooling.by_channel(flow, call, _input(call), "keep", positions=_dimensions(module))


@module_rule(nn.AvgPool1d, nn.AvgPool2d, nn.AvgPool3d)
def average_pool(flow: Flow, call: Call, module: Any, path: str) -> Any:
    """Mean of a window."""
    divisor = getattr(module, "divisor_override", None)
    constants = pooling.averaged(module.padding, module.count_include_pad, divisor)
    return pooling.by_channel(flow, call, _input(call), constants, positions=_dimensions(module))


@module_rule(nn.ReflectionPad1d, nn.ReflectionPad2d, nn.ReflectionPad3d)
@module_rule(nn.ReplicationPad1d, nn.ReplicationPad2d, nn.ReplicationPad3d)
@module_rule(nn.CircularPad1d, nn.CircularPad2d, nn.CircularPad3d)
def pad_copies(flow: Flow, call: Call, module: nn.Module, path: str) -> Any:
    """A border of copies."""
    return pooling.by_channel(flow, call, _input(call), "keep", positions=_dimensions(module))


@module_rule(nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d, nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d)
def pad_constant(flow: Flow, call: Call, module: Any, path: str) -> Any:
    """A border of one number."""
    args = (_input(call), module.padding, "constant", module.value)
    return joining.pad(flow, replace(call, name="pad", args=args, kwargs={}))


@module_rule(nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d)
def upsample(flow: Flow, call: Call, module: nn.Module, path: str) -> Any:
    """Weighted means of neighbours."""
    return pooling.by_channel(flow, call, _input(call), "keep", positions=_input(call).ndim - 2)


@module_rule(nn.Flatten)
def flatten(flow: Flow, call: Call, module: nn.Module, path: str) -> Any:
    """Axes merged."""
    return movement.reshape(flow, replace(call, name="flatten"))


@module_rule(nn.Unflatten)
def unflatten(flow: Flow, call: Call, module: Any, path: str) -> Any:
    """One axis cut into several, of sizes that the module keeps."""
    return flow.unknown(call, "nn.Unflatten keeps its sizes")


@module_rule(nn.Softmax, nn.LogSoftmax)
def softmax(flow: Flow, call: Call, module: Any, path: str) -> Any:
    """Softmax along an axis."""
    name = "softmax" if isinstance(module, nn.Softmax) else "log_softmax"
    return pooling.along_axis(flow, replace(call, name=name, args=(_input(call), module.dim), kwargs={}))


@module_rule(nn.GLU)
def glu(flow: Flow, call: Call, module: nn.GLU, path: str) -> Any:
    """One half of the channels, gated by the other."""
    return slicing.glu(flow, replace(call, name="glu", args=(_input(call), module.dim), kwargs={}))


@module_rule(nn.PixelShuffle)
def pixel_shuffle(flow: Flow, call: Call, module: nn.PixelShuffle, path: str) -> Any:
    """(C r^2, H, W) to (C, H r, W r)."""
    call = replace(call, name="pixel_shuffle", args=(_input(call), module.upscale_factor), kwargs={})
    return movement.pixel_shuffle(flow, call)


@module_rule(nn.ChannelShuffle)
def channel_shuffle(flow: Flow, call: Call, module: Any, path: str) -> Any:
    """Channels of the groups interleaved."""
    call = replace(call, name="channel_shuffle", args=(_input(call), module.groups), kwargs={})
    return movement.channel_shuffle(flow, call)


def _dimensions(module: nn.Module) -> int:
    """Number of trailing axes that hold positions."""
    return next(count for count, types in DIMENSIONS.items() if isinstance(module, types))
