"""``compact``: a network without the channels that its zeros made useless; the same function, fewer parameters.

A channel that no weight reads, or that is constant, is removed, and its constant moves into the biases of those that
read it. Where only sizes change, the result is a copy of the user's own model; else a ``torch.fx.GraphModule``.
"""

from __future__ import annotations

import copy
import logging
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, fx, nn
from torch.utils._pytree import tree_map

from bensemble.batches import call
from bensemble.checks import check_module
from bensemble.errors import ConversionError, InvalidTypeError, InvalidValueError
from bensemble.posterior import named_posteriors

from ..copying import copy_model, hollow_copy
from .capture import CaptureError, capture, outputs_agree, undisturbed
from .cutting import CannotKeepClassError, cut_leaves, install
from .propagate import propagate
from .report import CompactionReport, describe_layers
from .rewriting import needs_graph, rewrite
from .solution import solve

__all__ = ["compact", "compaction_report"]

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
        >>> small = compact(to_deterministic(bnn, threshold=0.83), x)
    """
    result = _compact("compact", model, example_inputs)
    log.info("%s", result.report)
    return result.module


def compaction_report(model: nn.Module, example_inputs: Any) -> CompactionReport:
    """What :func:`compact` would remove from the model, layer by layer, and what stays for which reason.

    Takes the same arguments and raises the same errors.
    """
    return _compact("compaction_report", model, example_inputs).report


@dataclass(frozen=True)
class _Result:
    module: nn.Module
    report: CompactionReport


def _compact(verb: str, model: nn.Module, example_inputs: Any) -> _Result:
    _check(verb, model)
    with undisturbed():
        runs = list(_reference_runs(verb, model, example_inputs))
        notes: list[str] = []
        best: _Result | None = None
        for source in ("fx", "export"):
            try:
                result, complete = _attempt(source, model, runs)
            except CaptureError as err:
                notes.append(str(err))
                continue
            except Exception as err:
                log.warning("%s: the torch.%s graph was given up", verb, source, exc_info=True)
                notes.append(f"the torch.{source} graph was given up ({type(err).__name__}: {err})")
                continue
            if result is not None and (best is None or result.report.parameters[1] < best.report.parameters[1]):
                best = result
            if complete:
                break
        if best is None:
            before = _count(model)
            best = _Result(_copy(verb, model), CompactionReport((before, before), "unchanged", notes=tuple(notes)))
            log.info("%s: %s is returned unchanged (%s)", verb, type(model).__name__, "; ".join(notes) or "no zeros")
        return best


def _check(verb: str, model: Any) -> None:
    """Refuse what cannot be compacted."""
    check_module(verb, model)
    for name, _ in named_posteriors(model):
        raise ConversionError(
            f"{verb}: '{name}' has a posterior, got a Bayesian {type(model).__name__}; "
            "pass to_deterministic(model), which takes the pruning threshold."
        )
    for name, tensor in (*model.named_parameters(), *model.named_buffers()):
        if nn.parameter.is_lazy(tensor):
            raise ConversionError(f"{verb}: '{name}' has no shape yet; run the model once first.")


def _reference_runs(verb: str, model: nn.Module, inputs: Any) -> Iterator[tuple[Any, Any]]:
    """The example and, where the model takes it, the example twice in a batch, each with the model's own output."""
    hollow = _hollow(verb, model)
    try:
        yield inputs, call(hollow, _fresh(inputs))
    except InvalidTypeError:
        raise
    except Exception as err:
        raise InvalidValueError(
            f"{verb}: the model rejects example_inputs ({type(err).__name__}: {err}); "
            "pass what its forward takes: a tensor, a tuple of arguments, or a mapping of keyword arguments."
        ) from err
    twice = tree_map(lambda leaf: torch.cat([leaf, leaf]) if isinstance(leaf, Tensor) and leaf.ndim else leaf, inputs)
    try:
        yield twice, call(hollow, _fresh(twice))
    except Exception as err:
        log.debug("%s: the model does not take the example twice in a batch (%s)", verb, err)


def _attempt(
    source: Literal["fx", "export"], model: nn.Module, runs: list[tuple[Any, Any]]
) -> tuple[_Result | None, bool]:
    """The model compacted by one tracer's graph, and whether another tracer could not do better."""
    example, reference = runs[0]
    captured = capture(source, _hollow("compact", model), _fresh(example), reference)
    flow = propagate(captured, model)
    solution = solve(flow)
    cut = cut_leaves(flow, solution)
    complete = not flow.unknowns
    before = _count(model)
    layers = describe_layers(flow, solution)
    notes = tuple(dict.fromkeys(reason for _, reason in flow.unknowns))
    if not cut.tensors:
        return None, complete
    reason = needs_graph(flow, solution)
    if reason is None:
        small = _copy("compact", model)
        try:
            install(small, cut, keep_class=True)
        except CannotKeepClassError as err:
            reason = str(err)
        else:
            reason = _difference(small, model, runs)
    if reason is None:
        report = CompactionReport((before, _count(small)), "class", source, layers, notes)
        return _Result(small, report), complete
    graph = rewrite(flow, solution, cut)
    wrong = _difference(graph, model, runs)
    if wrong is not None:
        log.info("compact: the graph of torch.%s was given up: %s", source, wrong)
        return None, False
    graph = _own_copy(graph, model)
    report = CompactionReport((before, _count(graph)), "graph", source, layers, (f"no class: {reason}", *notes))
    return _Result(graph, report), complete


def _difference(candidate: nn.Module, model: nn.Module, runs: list[tuple[Any, Any]]) -> str | None:
    """Why a candidate does not stand for the model; None if it does. Restores the model's training flags."""
    candidate.eval()
    try:
        for inputs, reference in runs:
            if not outputs_agree(call(candidate, _fresh(inputs)), reference):
                return "its output is another one"
    except Exception as err:
        return f"it does not run ({type(err).__name__}: {str(err).splitlines()[0] if str(err) else ''})"
    finally:
        flags = {path: module.training for path, module in model.named_modules()}
        for path, module in candidate.named_modules():
            module.training = flags.get(path, model.training)
    return None


def _own_copy(graph: fx.GraphModule, model: nn.Module) -> fx.GraphModule:
    """The graph's module with tensors of its own: so far it shares those that did not change."""
    own = copy.deepcopy(graph)
    flags = {path: module.training for path, module in model.named_modules()}
    for path, module in own.named_modules():
        module.training = flags.get(path, model.training)
    return own


def _hollow(verb: str, model: nn.Module) -> nn.Module:
    hollow = hollow_copy(model)
    if hollow is None:
        raise ConversionError(f"{verb}: {type(model).__name__} cannot be copied; make it deepcopy-able.")
    return hollow.eval()


def _copy(verb: str, model: nn.Module) -> nn.Module:
    try:
        return copy_model(verb, model)
    except ConversionError as err:
        raise ConversionError(f"{verb}: {type(model).__name__} cannot be copied; make it deepcopy-able.") from err


def _fresh(inputs: Any) -> Any:
    """Inputs that a model may write into."""
    return tree_map(lambda leaf: leaf.clone() if isinstance(leaf, Tensor) else leaf, inputs)


def _count(model: nn.Module) -> int:
    return sum(parameter.numel() for parameter in model.parameters())
