"""From the exporter's graph to the bytes of the file: names, metadata, checks, digest."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence

import onnx
from google.protobuf.message import EncodeError

from bensemble import __version__
from bensemble.errors import ExportError, one_line, refuse

from ..runtime.files import DIGEST_HEAD
from ..runtime.metadata import SCHEMA
from .files.norms import fold_norms
from .files.pooling import pool_between_convolutions
from .files.proto import (
    correct_output_shapes,
    drop_unused_constants,
    forget_inner_shapes,
    operators,
    rename_symbols,
    rename_values,
    share_transposed,
    strip,
)
from .inputs.axes import BATCH
from .inputs.trials import Trials
from .opsets import lower_opset
from .tracing import Traced

__all__ = ["check_ranges", "finished", "serialized"]

#: Operators that draw random numbers.
RANDOM = ("Bernoulli", "Multinomial", "RandomNormal", "RandomNormalLike", "RandomUniform", "RandomUniformLike")


def check_ranges(trials: Trials, traced: Traced, verify: bool) -> None:
    """Refuse a graph that holds only for some sizes of an axis that has to vary.

    A graph that is fixed according to the exporter passes where verification will run the file at another size.

    Raises:
        ExportError: The exporter fixed an axis, or followed one of two branches that depend on its size.
    """
    problems = []
    for axis in trials.axes:
        smallest, largest = traced.ranges[axis.name]
        index, dim = axis.places[0]
        name = trials.model.arguments.names[index]
        where = f"axis {dim} of '{name}' ({axis.name})"
        if not traced.symbols[axis.name] or (smallest == largest and not verify):
            problems.append(
                f"{where} must vary, but torch's exporter fixed it to {axis.size}; make the code follow the input's "
                f"shape, or accept the size with dynamic_shapes={{'{name}': {{}}}}."
            )
            continue
        capped = largest is not None and (axis.largest is None or largest < axis.largest)
        floored = axis.name == BATCH and smallest > max(2, axis.smallest or 1)  # torch's own code says 2 without need
        if axis.required and smallest != largest and (capped or floored):
            limits = {"min": smallest if smallest > 2 else None, "max": largest}
            bounds = ", ".join(f"{key}={value}" for key, value in limits.items() if value is not None)
            problems.append(
                f"{where} would hold for sizes {max(smallest, 1)} to {largest or 'any'} only, because the code "
                f"branches on it; remove the branch, or accept the bounds with dynamic_shapes={{'{name}': "
                f"{{{dim}: torch.export.Dim('{axis.name}', {bounds})}}}}."
            )
    refuse("export_onnx", problems, ExportError)


def finished(
    trials: Trials, traced: Traced, outputs: Sequence[str], metadata: Mapping[str, str], opset: int | None
) -> onnx.ModelProto:
    """The exporter's graph with the names and metadata of the file, without paths of this machine.

    The graph of ``traced`` is changed in place. Its operator set is the lowest that it needs, unless the user asked for
    one, and its IR version the lowest of that, so that old runtimes load it. The toolkit's version and the bounds of
    the axes join the metadata.
    """
    proto = traced.proto
    strip(proto)
    forget_inner_shapes(proto)
    pool_between_convolutions(proto)
    fold_norms(proto)
    drop_unused_constants(proto)
    if opset is None:
        lower_opset(proto)
    proto.ir_version = onnx.helper.find_min_ir_version_for(list(proto.opset_import), ignore_unknown=True)
    names = {value.name: name for value, name in zip(proto.graph.output, outputs, strict=True)}
    names |= {value.name: name for value, name in zip(proto.graph.input, trials.model.arguments.names, strict=True)}
    wanted = set(names.values())
    for tensor in proto.graph.initializer:  # FlatModel holds the model as `network`
        own = tensor.name.removeprefix("network.")
        if tensor.name not in names and own not in wanted:
            names[tensor.name] = own
    rename_values(proto, names)
    share_transposed(proto)
    rename_symbols(proto, {symbol: axis.name for axis in trials.axes for symbol in traced.symbols[axis.name]})
    first, second = trials.example, trials.varied
    shapes = [(tuple(output.shape), tuple(second.outputs[name].shape)) for name, output in first.outputs.items()]
    correct_output_shapes(proto, shapes, {name: (size, second.sizes[name]) for name, size in first.sizes.items()})
    bounds = {
        f"bensemble.range.{name}": f"{max(smallest, 1)} to {largest or 'any'}"
        for name, (smallest, largest) in traced.ranges.items()
        if smallest != largest and (smallest > 2 or largest is not None)
    }
    toolkit = {"bensemble.schema": str(SCHEMA), "bensemble.version": __version__}
    onnx.helper.set_model_props(proto, dict(sorted({**metadata, **toolkit, **bounds}.items())))
    return proto


def serialized(proto: onnx.ModelProto, verify: bool) -> bytes:
    """The bytes of the file, the same for the same graph, with their digest before them.

    Raises:
        ExportError: The graph is not valid, is too large for one file, or draws random numbers and cannot be verified.
    """
    drawn = sorted(set(operators(proto)) & set(RANDOM))
    if drawn and verify:
        raise ExportError(
            f"export_onnx: the model must not draw random numbers in eval mode, got {', '.join(drawn)} in its graph; "
            "make its forward deterministic in eval. verify=False writes it without this check."
        )
    try:
        onnx.checker.check_model(proto)
        data = proto.SerializeToString(deterministic=True)
    except (ValueError, EncodeError) as err:
        raise ExportError(f"export_onnx: the graph must fit into one file of 2 GiB, got {one_line(err)}.") from err
    except onnx.checker.ValidationError as err:
        raise ExportError(
            f"export_onnx: torch's exporter made a graph that is not valid, got {one_line(err)}."
        ) from err
    return DIGEST_HEAD + hashlib.sha256(data).hexdigest().encode() + data
