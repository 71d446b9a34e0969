"""Eight-bit integers in place of float32, by ONNX Runtime's own quantizer.

Static quantization (QuantizeLinear and DequantizeLinear around every operator, weights int8 with a scale per output
channel, activations uint8) needs calibration data: a run over it tells the range of every activation. Without data,
a graph of matrix products alone is quantised dynamically: weights per channel, the range of activations measured at
every call. Convolutions would get slower that way.

Activations are unsigned because ONNX Runtime's kernels for uint8 times int8 are the fast ones on x86 (measured on a
compacted ResNet-18: 0.16 of the dense latency, against 0.30 for int8 times int8). On x86 processors without VNNI these
kernels add products in pairs in 16 bits, where two of 255 * 127 saturate. So weights have seven bits, at most 64 in
size: 255 * 64 * 2 = 32640 fits, and a file gives the same outputs on every processor, up to rounding. Measured on an
emulated Haswell: five networks of scikit-learn's digits have errors of 1.0 to 2.1 % instead of 6 to 22 %.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from torch import Tensor

from bensemble.checkpoint.writing import working_folder
from bensemble.errors import ExportError, InvalidTypeError, InvalidValueError, needs_extra, one_line
from bensemble.models.batches import is_loader
from bensemble.models.outputs import describe

from ..files.proto import forget_inner_shapes, operators
from ..inputs.trials import Trials
from .calibrating import calibration_batches
from .in_float32 import CONVOLUTIONS, PRODUCTS, before, refused, softmax_of_floats

__all__ = ["Quantization", "quantization_options"]

#: Operators of transformers. Where there is one, only what products read is rounded: sums over many layers do not fit
#: eight bits (measured on a small ViT: an error of 0.04 instead of 0.35, at the same latency), and what products give
#: out is read in float32 anyway (three encoders and a ViT: 0.9 of the latency, 0.84 to 0.92 of the error).
NORMALISING = ("LayerNormalization", "RMSNormalization", "Softmax")

#: Operators of graphs that are quantised already.
QUANTISED = (
    "QuantizeLinear",
    "DequantizeLinear",
    "DynamicQuantizeLinear",
    "MatMulInteger",
    "ConvInteger",
    "QLinearConv",
)


@dataclass(frozen=True)
class Quantization:
    """What the user asked for: calibration data for the static way, None for the dynamic one."""

    data: Any

    @property
    def static(self) -> bool:
        """Whether the ranges of activations come from data."""
        return self.data is not None

    @property
    def description(self) -> str:
        """For the metadata and the report."""
        return "int8 static, per channel" if self.static else "int8 dynamic, per channel"

    def batches(self, trials: Trials) -> Iterable[tuple[Tensor, ...]]:
        """The calibration data, to be read once; without data, the inputs of the trials."""
        return (tensors for tensors, _ in self.with_targets(trials))

    def with_targets(self, trials: Trials) -> Iterator[tuple[tuple[Tensor, ...], Any]]:
        """The same, each batch with its target, None where it has none."""
        if self.static:
            return calibration_batches(self.data, trials)
        return ((trial.tensors, None) for trial in trials.different)

    def apply(
        self, proto: onnx.ModelProto, batches: Iterable[tuple[Tensor, ...]], heads: Sequence[np.ndarray] = ()
    ) -> onnx.ModelProto:
        """The quantised graph.

        Args:
            proto: The float graph.
            batches: What the ranges of activations are measured on.
            heads: Weights of last layers; where there are some, only what comes before them is rounded.

        Raises:
            ExportError: The graph holds nothing to quantise, is quantised already, or is refused by the quantizer.
            InvalidValueError, InvalidTypeError: The calibration data does not fit the file's inputs.
        """
        self._check(proto)
        with working_folder() as folder, _quiet():
            target = folder / "quantised.onnx"
            try:
                self._run(proto, target, batches, before(proto, heads) if heads else None)
            except (InvalidValueError, InvalidTypeError):
                raise
            except Exception as err:
                raise ExportError(
                    f"export_onnx: ONNX Runtime's quantizer refuses the graph, got {one_line(err)}; export without "
                    "quantize."
                ) from err
            found = onnx.load(target)
        known = {tensor.name for tensor in proto.graph.initializer}
        added = [tensor for tensor in found.graph.initializer if tensor.name not in known and len(tensor.dims) > 1]
        if all(tensor.data_type != onnx.TensorProto.INT8 for tensor in added):
            raise ExportError(
                f"export_onnx: quantize='int8' must find weights of convolutions or matrix products, got "
                f"{_listing(proto)}; export without quantize."
            )
        del found.metadata_props[:]
        found.metadata_props.extend(proto.metadata_props)
        softmax_of_floats(found)
        forget_inner_shapes(found)  # the quantizer's: with axes of any size, some runtimes refuse to run one size
        return found

    def _check(self, proto: onnx.ModelProto) -> None:
        counts = operators(proto)
        found = [name for name in QUANTISED if name in counts]
        if found:
            raise ExportError(
                f"export_onnx: quantize='int8' needs a float model, got {', '.join(found)} in its graph; "
                "export it without quantize, or the float model from before."
            )
        weights = {tensor.data_type for tensor in proto.graph.initializer if len(tensor.dims) > 1}
        whole = {onnx.TensorProto.INT8, onnx.TensorProto.INT64, onnx.TensorProto.INT32, onnx.TensorProto.BOOL}  # tables
        if weights - {onnx.TensorProto.FLOAT, *whole}:
            kinds = ", ".join(sorted(onnx.TensorProto.DataType.Name(kind).lower() for kind in weights))
            raise ExportError(
                f"export_onnx: quantize='int8' needs float32 weights, got {kinds}; convert it with model.float()."
            )
        if not self.static and any(name in counts for name in CONVOLUTIONS):
            raise InvalidValueError(
                f"export_onnx: quantize='int8' needs calibration_data for a model with convolutions, got None and "
                f"{_listing(proto)}; pass typical inputs, a tensor or a loader."
            )

    def _run(
        self, proto: onnx.ModelProto, target: Path, batches: Iterable[tuple[Tensor, ...]], nodes: list[str] | None
    ) -> None:
        with needs_extra("export_onnx", "onnx"):
            from onnxruntime import quantization as ort  # not needed to export without quantization

        if not self.static:
            del proto.graph.value_info[:]  # onnxruntime 1.23 transposes weights and keeps their old shapes
            if nodes:  # onnxruntime makes a Gemm a MatMul and an Add first, and looks for these by their new names
                products = {node.name for node in proto.graph.node if node.op_type == "Gemm"}
                nodes = [*nodes, *(f"{name}_MatMul" for name in nodes if name in products)]
            ort.quantize_dynamic(
                proto, str(target), weight_type=ort.QuantType.QInt8, per_channel=True, reduce_range=True,
                nodes_to_quantize=nodes,
            )  # fmt: skip
            return

        inner = set(NORMALISING) & set(operators(proto))
        names, left = [value.name for value in proto.graph.input], iter(batches)

        class Reader(ort.CalibrationDataReader):
            def get_next(self) -> dict[str, Any] | None:
                tensors = next(left, None)
                return None if tensors is None else {n: t.numpy() for n, t in zip(names, tensors, strict=True)}

        ort.quantize_static(
            proto,
            str(target),
            Reader(),
            quant_format=ort.QuantFormat.QDQ,
            per_channel=True,
            reduce_range=True,
            activation_type=ort.QuantType.QUInt8,
            weight_type=ort.QuantType.QInt8,
            op_types_to_quantize=[*CONVOLUTIONS, *PRODUCTS] if inner else None,
            nodes_to_quantize=nodes,
            nodes_to_exclude=refused(proto),
            extra_options={"OpTypesToExcludeOutputQuantization": [*PRODUCTS]} if inner else None,
        )


def quantization_options(
    quantize: str | None, calibration_data: Any, outputs: str, method: str | None = None, novelty: bool = False
) -> Quantization | None:
    """The options of ``export_onnx``, checked; None without quantization.

    Args:
        quantize: "int8" or None.
        calibration_data: Typical inputs.
        outputs: "mean" or "uncertainty".
        method: How uncertainty is computed.
        novelty: Whether the file has one.

    Raises:
        InvalidTypeError, InvalidValueError: An argument that cannot work.
    """
    if quantize is None:
        if calibration_data is not None:
            raise InvalidValueError(
                f"export_onnx: calibration_data is for quantize='int8', got {describe(calibration_data)} and "
                "quantize=None; pass both or none."
            )
        return None
    if quantize != "int8":
        raise InvalidValueError(f"export_onnx: quantize must be 'int8' or None, got {quantize!r}.")
    if outputs != "mean" and method != "closed":
        raise InvalidValueError(
            f"export_onnx: quantize='int8' needs outputs='mean' or a last layer in closed form, got "
            f"outputs={outputs!r} by samples; eight bits cannot hold the small differences between draws. Make the "
            "last layer alone Bayesian, bayesify(model, include=last_layer(model, x), example_inputs=x), before "
            "fit_posterior and fit_novelty; or leave quantize out: sparse=True is possible."
        )
    if novelty and calibration_data is None:
        raise InvalidValueError(
            "export_onnx: quantize='int8' with novelty needs calibration_data, got None; rounded features look "
            "stranger, so p-values are counted anew. Pass the val_loader of fit_novelty."
        )
    if calibration_data is None:
        return Quantization(None)
    try:
        loader = is_loader(calibration_data)
    except InvalidTypeError as err:
        raise InvalidTypeError(
            f"export_onnx: calibration_data must be inputs of the model or a loader, got {describe(calibration_data)}; "
            "pass a tensor, a tuple, a mapping, a loader or a list of batches."
        ) from err
    if loader and isinstance(calibration_data, Iterator):  # it is read twice: for the ranges, and for the error
        calibration_data = list(calibration_data)
    return Quantization(calibration_data)


def _listing(proto: onnx.ModelProto) -> str:
    return ", ".join(f"{count} {name}" for name, count in list(operators(proto).items())[:6])


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the quantizer's advice on the root logger: the exporter has prepared the graph, norms have one axis."""

    def other(record: logging.LogRecord) -> bool:
        return "onnxruntime" not in record.pathname

    logging.getLogger().addFilter(other)
    try:
        with np.errstate(all="ignore"):  # ranges of constants, such as the -inf of a mask
            yield
    finally:
        logging.getLogger().removeFilter(other)
