"""torch.nn modules as calls of the functions that they stand for, so that one rule serves both."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

from torch import Tensor, nn

from ..atoms.calls import Call
from ..atoms.flow import Flow

__all__ = ["FUNCTIONS", "as_function"]

CONVOLUTION = ("weight", "bias", "stride", "padding", "dilation", "groups")
TRANSPOSED = ("weight", "bias", "stride", "padding", "output_padding", "groups")
NORM_BY_CHANNEL = ("running_mean", "running_var", "weight", "bias", "training", "momentum", "eps")
AVERAGE_POOL = ("kernel_size", "stride", "padding", "ceil_mode", "count_include_pad", "divisor_override")
ACTIVATIONS: tuple[type[nn.Module], ...] = (
    *(nn.ReLU, nn.ReLU6, nn.Hardtanh, nn.Hardswish, nn.Hardsigmoid, nn.Sigmoid, nn.Tanh, nn.GELU, nn.SiLU, nn.Mish),
    *(nn.ELU, nn.SELU, nn.CELU, nn.LeakyReLU, nn.Softplus, nn.Softsign, nn.LogSigmoid, nn.Tanhshrink, nn.Softshrink),
    *(nn.Hardshrink, nn.Threshold),
)
#: What passes its input on in evaluation mode.
IDENTITIES: tuple[type[nn.Module], ...] = (
    *(nn.Dropout, nn.Dropout1d, nn.Dropout2d, nn.Dropout3d, nn.AlphaDropout, nn.FeatureAlphaDropout, nn.Identity),
)

#: The name of the function of each type of module, then the attributes of the module that follow the input.
FUNCTIONS: dict[type[nn.Module], tuple[str, ...]] = {
    nn.Linear: ("linear", "weight", "bias"),
    nn.Conv1d: ("conv1d", *CONVOLUTION),
    nn.Conv2d: ("conv2d", *CONVOLUTION),
    nn.Conv3d: ("conv3d", *CONVOLUTION),
    nn.ConvTranspose1d: ("conv_transpose1d", *TRANSPOSED),
    nn.ConvTranspose2d: ("conv_transpose2d", *TRANSPOSED),
    nn.ConvTranspose3d: ("conv_transpose3d", *TRANSPOSED),
    nn.Embedding: ("embedding", "weight", "padding_idx", "max_norm"),
    **dict.fromkeys((nn.BatchNorm1d, nn.BatchNorm2d, nn.BatchNorm3d), ("batch_norm", *NORM_BY_CHANNEL)),
    nn.SyncBatchNorm: ("batch_norm", *NORM_BY_CHANNEL),
    **dict.fromkeys((nn.InstanceNorm1d, nn.InstanceNorm2d, nn.InstanceNorm3d), ("instance_norm", *NORM_BY_CHANNEL)),
    nn.LayerNorm: ("layer_norm", "normalized_shape", "weight", "bias"),
    nn.RMSNorm: ("rms_norm", "normalized_shape", "weight"),
    nn.GroupNorm: ("group_norm", "num_groups", "weight", "bias", "eps"),
    **dict.fromkeys(ACTIVATIONS, ("activation",)),
    **dict.fromkeys(IDENTITIES, ("identity",)),
    nn.PReLU: ("prelu", "weight"),
    nn.Softmax: ("softmax", "dim"),
    nn.LogSoftmax: ("log_softmax", "dim"),
    nn.GLU: ("glu", "dim"),
    nn.Flatten: ("flatten",),
    nn.PixelShuffle: ("pixel_shuffle", "upscale_factor"),
    **dict.fromkeys((nn.Upsample, nn.UpsamplingNearest2d, nn.UpsamplingBilinear2d), ("interpolate",)),
    nn.AvgPool1d: ("avg_pool1d", *AVERAGE_POOL),
    nn.AvgPool2d: ("avg_pool2d", *AVERAGE_POOL),
    nn.AvgPool3d: ("avg_pool3d", *AVERAGE_POOL),
    **dict.fromkeys((nn.MaxPool1d, nn.AdaptiveAvgPool1d, nn.AdaptiveMaxPool1d), ("max_pool1d",)),
    **dict.fromkeys((nn.MaxPool2d, nn.AdaptiveAvgPool2d, nn.AdaptiveMaxPool2d), ("max_pool2d",)),
    **dict.fromkeys((nn.MaxPool3d, nn.AdaptiveAvgPool3d, nn.AdaptiveMaxPool3d), ("max_pool3d",)),
    **dict.fromkeys((nn.ReflectionPad1d, nn.ReplicationPad1d, nn.CircularPad1d), ("replication_pad1d",)),
    **dict.fromkeys((nn.ReflectionPad2d, nn.ReplicationPad2d, nn.CircularPad2d), ("replication_pad2d",)),
    **dict.fromkeys((nn.ReflectionPad3d, nn.ReplicationPad3d, nn.CircularPad3d), ("replication_pad3d",)),
    **dict.fromkeys((nn.ZeroPad1d, nn.ZeroPad2d, nn.ZeroPad3d), ("constant_pad_nd", "padding", "value")),
    **dict.fromkeys((nn.ConstantPad1d, nn.ConstantPad2d, nn.ConstantPad3d), ("constant_pad_nd", "padding", "value")),
}


def as_function(flow: Flow, call: Call, module: nn.Module, path: str) -> Call | None:
    """The call of a module as a call of its function; None where it has none, or takes more than its input."""
    if type(module) not in FUNCTIONS or len(call.operands) != 1 or len(call.args) + len(call.kwargs) != 1:
        return None
    name, *attributes = FUNCTIONS[type(module)]
    args = (call.operands[0], *(_argument(flow, module, path, attribute) for attribute in attributes))
    return replace(call, name=name, args=args, kwargs={})


def _argument(flow: Flow, module: Any, path: str, attribute: str) -> Any:
    value = getattr(module, attribute, None)
    if isinstance(value, Tensor):
        return flow.leaf(f"{path}.{attribute}" if path else attribute)
    if attribute == "padding" and getattr(module, "padding_mode", "zeros") != "zeros":
        return 0  # a border of copies does not change a constant
    return value
