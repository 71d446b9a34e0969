"""``compact``: remove the channels that no output depends on; the same function with fewer parameters.

A channel that no weight reads, or that is constant, is removed, and its constant moves into the biases of those that
read it. Where only sizes change, the result is a copy of the user's own model; else a ``torch.fx.GraphModule``.
"""

from __future__ import annotations

import copy
import logging
import warnings
from typing import Any, TypeAlias

import torch
from torch import nn
from torch.nn.utils.prune import is_pruned

from bensemble.checks import check_module
from bensemble.errors import ConversionError
from bensemble.models.undisturbed import undisturbed
from bensemble.posteriors import named_posteriors

from ...planning.copying import check_shapes, copy_model
from ..capture import SOURCES, CaptureError, DynamicAxes, Source, capture
from .atoms.flow import Flow
from .cutting import CannotKeepClassError, Cut, cut_leaves, install
from .equivalence import Run, copy_flags, difference, fresh, hollow, reference_runs, training_difference
from .propagate import propagate
from .rewriting import needs_graph, rewrite
from .solution import Solution
from .solving import solve
from .summary import CompactionReport, describe_layers
from .unreached import keep_for_unreached

__all__ = ["compact", "compaction_report"]

_Result: TypeAlias = "tuple[nn.Module, CompactionReport]"

log = logging.getLogger("bensemble.compact")


def compact(model: nn.Module, example_inputs: Any) -> nn.Module:
    """A physically smaller copy of a deterministic model whose weights hold zeros; it computes the same in evaluation.

    Channels, neurons and attention heads that are constant or unread are removed, their constants folded into biases.
    What an operation does that is not understood stays as it is. The result runs at other batch and image sizes,
    trains on and saves; constants are those of evaluation mode. Training flags are those of the model.

    Args:
        model: Plain torch modules. It is left untouched, as is the random state.
        example_inputs: What its forward takes: a tensor, a tuple of arguments, or a mapping of keyword arguments.

    Returns:
        A copy of the model's own class where only sizes change, otherwise a GraphModule, which keeps the behaviour of
        functional dropout and the like in evaluation. An unchanged copy, with the reason in the log, where the model
        cannot be traced or holds nothing to remove.

    Raises:
        ConversionError: the model is Bayesian, or cannot be copied.
        InvalidValueError: the model rejects the example inputs.

    Example:
        >>> small = convert.compact(pruned, x)
    """
    small, report = _compact("compact", model, example_inputs)
    log.info("%s", report)
    if is_pruned(model):
        warnings.warn(
            "compact: what is under a mask of torch.nn.utils.prune stays as large as it is; call "
            "torch.nn.utils.prune.remove(layer, 'weight') on each such layer first.",
            stacklevel=2,
        )
    return small


def compaction_report(model: nn.Module, example_inputs: Any) -> CompactionReport:
    """What :func:`compact` would remove from the model, layer by layer, and what stays for which reason.

    Takes the same arguments and raises the same errors.

    Example:
        >>> print(convert.compaction_report(pruned, x))
    """
    return _compact("compaction_report", model, example_inputs)[1]


def _compact(verb: str, model: nn.Module, example_inputs: Any) -> _Result:
    _check(verb, model)
    with undisturbed(model):
        runs = reference_runs(verb, model, example_inputs)
        notes: list[str] = []
        found: list[_Result] = []
        for source in SOURCES:
            try:
                result, complete = _attempt(source, model, runs)
            except CaptureError as err:
                notes.append(str(err))
                continue
            except Exception as err:
                log.warning("%s: the torch.%s graph was given up", verb, source, exc_info=True)
                notes.append(f"the torch.{source} graph was given up ({type(err).__name__}: {err})")
                continue
            if result is not None:
                found.append(result)
            if complete:
                break
        if found:
            return min(found, key=lambda result: result[1].parameters[1])
        log.info("%s: %s is returned unchanged (%s)", verb, type(model).__name__, "; ".join(notes) or "no zeros")
        before = _count(model)
        return _copy(verb, model), CompactionReport((before, before), "unchanged", notes=tuple(dict.fromkeys(notes)))


def _check(verb: str, model: Any) -> None:
    """Refuse what cannot be compacted."""
    check_module(verb, model)
    for name, _ in named_posteriors(model):
        raise ConversionError(
            f"{verb}: '{name}' has a posterior, got a Bayesian {type(model).__name__}; "
            "pass to_deterministic(model), which takes the pruning threshold."
        )
    check_shapes(verb, model)


def _attempt(source: Source, model: nn.Module, runs: list[Run]) -> tuple[_Result | None, bool]:
    """The model compacted by one tracer's graph, and whether another tracer could not do better."""
    flow, solution, cut = _analyse(source, model, runs[0])
    if not cut.tensors:
        if flow.notes or flow.unknowns:
            raise CaptureError("; ".join(dict.fromkeys([*flow.notes, *(found for _, found in flow.unknowns)])))
        return None, True
    reason = needs_graph(flow, solution)
    if reason is None:
        small = _copy("compact", model)
        try:
            install(small, cut, keep_class=True)
        except CannotKeepClassError as err:
            reason = str(err)
        else:
            reason = difference(small, model, runs, keeps_class=True) or training_difference(small, model, flow, runs)
    if reason is None:
        return (small, _report(flow, solution, model, small)), not flow.unknowns
    if source == "export":
        # A batch of one would be taken for a size that never changes.
        run = [run for run in runs if run.required][-1]
        flow, solution, cut = _analyse(source, model, run, "batch" if _attends(flow) else "all")
    graph = rewrite(flow, solution, cut)
    wrong = difference(graph, model, runs, keeps_class=False)
    if wrong is not None:  # a rule is wrong, or the model is not the same in every run
        log.warning("compact: the graph of torch.%s was given up: %s", source, wrong)
        raise CaptureError(f"the torch.{source} graph was given up: {wrong}")
    graph = copy.deepcopy(graph)  # so far it shares the tensors that did not change
    copy_flags(model, graph)
    return (graph, _report(flow, solution, model, graph, reason)), not flow.unknowns


def _analyse(source: Source, model: nn.Module, run: Run, dynamic: DynamicAxes = "none") -> tuple[Flow, Solution, Cut]:
    """What one graph says about the model."""
    flow = propagate(capture(source, hollow("compact", model), fresh(run.inputs), run.output, dynamic), model)
    keep_for_unreached(flow, model, fresh(run.inputs))
    solution = solve(flow)
    return flow, solution, cut_leaves(flow, solution)


def _report(
    flow: Flow, solution: Solution, model: nn.Module, small: nn.Module, reason: str | None = None
) -> CompactionReport:
    """The report on a model of its own class, or on a graph with the reason why it is one."""
    notes = [f"no class: {reason}", *flow.notes] if reason else list(flow.notes)
    notes += dict.fromkeys(found for _, found in flow.unknowns)
    return CompactionReport(
        (_count(model), _count(small)),
        "graph" if reason else "class",
        flow.captured.source,
        describe_layers(flow, solution),
        tuple(notes),
    )


def _attends(flow: Flow) -> bool:
    """Whether a model multiplies activations, as attention does; exporting those for all sizes takes minutes."""
    aten = torch.ops.aten
    products = (aten.scaled_dot_product_attention.default, aten.matmul.default, aten.bmm.default)
    return any(node.target in products for node in flow.captured.module.graph.nodes)


def _copy(verb: str, model: nn.Module) -> nn.Module:
    try:
        return copy_model(verb, model)
    except ConversionError as err:
        raise ConversionError(f"{verb}: {type(model).__name__} cannot be copied; make it deepcopy-able.") from err


def _count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
