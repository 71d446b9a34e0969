"""torch's own exporter, its output redirected and its errors in one readable line.

The exporter prints, logs and warns on several channels; all of it goes to the logger ``bensemble.onnx`` at level DEBUG
unless ``verbose`` is set.
"""

from __future__ import annotations

import contextlib
import io
import logging
import warnings
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from typing import TypeAlias

import onnx
import onnx_ir
import torch
from torch.export import Dim

from bensemble.errors import ExportError, one_line, raising_line

from .inputs.arguments import FlatModel
from .inputs.axes import Axis
from .inputs.data_reads import data_detached
from .inputs.trials import Trials
from .masked_rows import TRANSLATIONS
from .optimizer import bytes_kept, exact_constants
from .source_lines import last_line, source_lines
from .symbolic_len import symbolic_len
from .uncertainty.merging import merge_siblings

__all__ = ["Traced", "quiet", "trace"]

logger = logging.getLogger("bensemble.onnx")

#: Packages that log while a model is exported.
NOISY = ("torch", "onnx", "onnxscript", "onnx_ir", "onnxruntime")

#: Smallest and largest size of an axis; None where there is no largest.
Range: TypeAlias = "tuple[int, int | None]"


@dataclass(frozen=True)
class Traced:
    """The result of torch's exporter.

    Attributes:
        proto: The model as ONNX, with the exporter's names.
        symbols: The exporter's symbols for each axis, by the axis' name; none where it fixed the axis.
        ranges: Sizes for which the graph holds according to the exporter, by the axis' name. Where smallest and largest
            are equal it may be wrong: a graph with LSTMs holds for any length.
        lines: The lines of the model's code behind the nodes, by the nodes' names.
    """

    proto: onnx.ModelProto
    symbols: dict[str, tuple[str, ...]]
    ranges: dict[str, Range]
    lines: dict[str, str]


def trace(trials: Trials, opset: int | None, verbose: bool) -> Traced:
    """Export a model with the axes of its trials dynamic.

    Where the exporter fixes an axis, or fails, it is asked once more and told that the axes must vary: it then follows
    some arithmetic that it does not follow otherwise, such as a size that passes through a float.

    Raises:
        ExportError: The exporter cannot follow the model, or cannot write that operator set.
    """
    with quiet(verbose):
        reads = trials.reads_data  # refused here where the model writes there
    if reads:
        logger.debug("what %s reads through .data is exported as detach()", trials.model.name)
    try:
        found = _traced(trials, opset, verbose)
        fixed = {name for name, (smallest, largest) in found.ranges.items() if smallest == largest}
        fixed |= {name for name, symbols in found.symbols.items() if not symbols}
        failure = None
    except Exception as err:
        found, fixed, failure = None, {axis.name for axis in trials.axes}, err
    if fixed:
        try:
            found = _traced(trials, opset, verbose, fixed)
        except Exception as err:
            logger.debug("told that %s must vary, the exporter fails: %s", ", ".join(sorted(fixed)), one_line(err))
    if found is None:
        assert failure is not None
        raise _explained(trials.model, failure) from failure
    written = next(entry.version for entry in found.proto.opset_import if entry.domain in ("", "ai.onnx"))
    if opset is not None and written != opset:
        raise ExportError(
            f"export_onnx: opset must be one that torch's exporter can write, got {opset}; it wrote {written}."
        )
    return found


def _traced(trials: Trials, opset: int | None, verbose: bool, varying: Collection[str] = ()) -> Traced:
    """One run of the exporter; the axes named in ``varying`` must not be fixed."""
    with quiet(verbose), torch.no_grad():
        proto, limits = _exported(trials, opset, verbose, varying)
    symbols = {axis.name: _symbols(proto, axis) for axis in trials.axes}
    ranges = {name: _intersection([limits.get(s, (0, None)) for s in found]) for name, found in symbols.items()}
    return Traced(proto, symbols, ranges, source_lines(proto))


def _exported(
    trials: Trials, opset: int | None, verbose: bool, varying: Collection[str], optimize: bool = True
) -> tuple[onnx.ModelProto, dict[str, Range]]:
    """The optimized graph, and the sizes for which it holds by the exporter's symbols."""
    model = trials.model
    # A size of one looks like a constant to the exporter.
    trial = trials.varied if any(axis.size == 1 for axis in trials.axes) else trials.example
    with symbolic_len(model), data_detached(trials.reads_data):
        program = torch.onnx.export(
            model,
            (trial.tensors,),
            dynamo=True,
            verbose=verbose,
            opset_version=opset,
            dynamic_shapes=(_dynamic_shapes(trials, varying),),
            optimize=False,
            custom_translation_table=dict(TRANSLATIONS),
        )
    assert program is not None  # the other, older exporter returns nothing
    assert program.exported_program is not None
    withheld: list[onnx.TensorProto] = []
    if model.rewrites:
        proto = program.model_proto
        withheld = model.rewrite(proto)
        program.model = onnx_ir.from_proto(proto)
    if optimize:
        try:
            with exact_constants(), bytes_kept(program.model.graph):
                program.optimize()
        except Exception as err:  # it leaves the graph half-way
            logger.info("exporting without the exporter's optimizer, because of %s", one_line(err))
            return _exported(trials, opset, verbose, varying, optimize=False)
    proto = program.model_proto
    _store(proto, withheld)
    if model.rewrites and model.count > 1:
        merge_siblings(proto)
    constraints = program.exported_program.range_constraints
    return proto, {str(symbol): _range(found) for symbol, found in constraints.items()}


def _store(proto: onnx.ModelProto, withheld: Sequence[onnx.TensorProto]) -> None:
    """Make constants of inputs that were none for the optimizer."""
    names = {tensor.name for tensor in withheld}
    kept = [value for value in proto.graph.input if value.name not in names]
    del proto.graph.input[:]
    proto.graph.input.extend(kept)
    proto.graph.initializer.extend(withheld)


def _dynamic_shapes(trials: Trials, varying: Collection[str]) -> tuple[dict[int, object], ...]:
    """The axes of every input that may vary, as torch.export takes them."""
    shapes: list[dict[int, object]] = [{} for _ in trials.example.tensors]
    for axis in trials.axes:
        hint = Dim.DYNAMIC if axis.name in varying else Dim.AUTO
        bounded = axis.smallest is not None or axis.largest is not None
        for index, dim in axis.places:
            shapes[index][dim] = hint(min=axis.smallest, max=axis.largest) if bounded else hint
    return tuple(shapes)


@contextlib.contextmanager
def quiet(verbose: bool) -> Iterator[None]:
    """Send prints, warnings and log records of the exporter to ``bensemble.onnx``; do nothing when ``verbose``."""
    if verbose:
        yield
        return
    printed = io.StringIO()
    warned: list[warnings.WarningMessage] = []
    try:
        with (
            warnings.catch_warnings(record=True) as warned,
            contextlib.redirect_stdout(printed),
            contextlib.redirect_stderr(printed),
            _redirected_logs(),
        ):
            warnings.simplefilter("always")
            yield
    finally:
        for warning in warned:
            logger.debug("%s: %s", warning.category.__name__, warning.message)
        if printed.getvalue().strip():
            logger.debug("%s", printed.getvalue().strip())


class _Forward(logging.Handler):
    """Passes every record on to the toolkit's logger."""

    def emit(self, record: logging.LogRecord) -> None:
        logger.debug("%s: %s", record.name, record.getMessage())


@contextlib.contextmanager
def _redirected_logs() -> Iterator[None]:
    """Replace the handlers of the noisy packages' loggers; torch gives some of its modules handlers of their own."""
    known = logging.root.manager.loggerDict
    names = [name for name in list(known) if name.split(".")[0] in NOISY] + list(NOISY)
    saved = []
    for noisy in map(logging.getLogger, dict.fromkeys(names)):
        if noisy.handlers or noisy.name in NOISY:
            saved.append((noisy, noisy.handlers, noisy.propagate))
            noisy.handlers, noisy.propagate = [_Forward()], False
    try:
        yield
    finally:
        for noisy, handlers, propagate in saved:
            noisy.handlers, noisy.propagate = handlers, propagate


def _symbols(proto: onnx.ModelProto, axis: Axis) -> tuple[str, ...]:
    """The symbols that the graph has in the places of an axis; empty when one of them is fixed."""
    dims = [proto.graph.input[index].type.tensor_type.shape.dim[dim] for index, dim in axis.places]
    return tuple(dict.fromkeys(dim.dim_param for dim in dims)) if all(dim.dim_param for dim in dims) else ()


def _range(found: object) -> Range:
    """The bounds of a symbol; the exporter writes infinity as a symbol of its own."""
    lower, upper = str(getattr(found, "lower", 0)), str(getattr(found, "upper", ""))
    return int(lower) if lower.isdigit() else 0, int(upper) if upper.isdigit() else None


def _intersection(ranges: Sequence[Range]) -> Range:
    largest = [upper for _, upper in ranges if upper is not None]
    return max((lower for lower, _ in ranges), default=0), min(largest, default=None)


def _explained(model: FlatModel, err: Exception) -> ExportError:
    """The exporter's long report in one line: the cause, and the line of the model's code in it."""
    cause = err
    while isinstance(cause.__cause__, Exception):
        cause = cause.__cause__
    line = last_line(f"{cause}") or raising_line(err)
    at = f" at {line}" if line else ""
    return ExportError(
        f"export_onnx: torch.onnx cannot follow {model.name}{at}, got {one_line(cause)}; "
        "change that operation, or export a part of the model."
    )
