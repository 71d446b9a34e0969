"""Whether a smaller model equals the model: the same outputs for the example, a larger batch and another size."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from bensemble.errors import ConversionError, InvalidTypeError, InvalidValueError, one_line
from bensemble.models.batches import call
from bensemble.models.undisturbed import undisturbed
from bensemble.torch_internals import pytree

from ...planning.copying import hollow_copy
from ..capture import coarsest_precision, outputs_agree
from .atoms.flow import Flow

__all__ = ["Run", "copy_flags", "difference", "fresh", "hollow", "reference_runs", "training_difference"]

log = logging.getLogger("bensemble.compact")


@dataclass(frozen=True)
class Run:
    """Inputs, what the model makes of them, and whether a graph must take them too."""

    inputs: Any
    output: Any
    required: bool


def reference_runs(verb: str, model: nn.Module, inputs: Any) -> list[Run]:
    """The example with the model's own output; then, where the model takes them, a larger batch and another size."""
    network = hollow(verb, model)
    try:
        runs = [Run(inputs, _trial(network, inputs), required=True)]
    except InvalidTypeError:
        raise
    except Exception as err:
        raise InvalidValueError(
            f"{verb}: the model rejects example_inputs ({type(err).__name__}: {err}); "
            "pass what its forward takes: a tensor, a tuple of arguments, or a mapping of keyword arguments."
        ) from err
    for change, required in ((_twice, True), (_resized, False)):
        other = pytree.tree_map_only(Tensor, change, inputs)
        try:
            runs.append(Run(other, _trial(network, other), required))
        except Exception as err:
            log.debug("%s: the model does not take the example with %s (%s)", verb, change.__name__, err)
    return runs


def _trial(network: nn.Module, inputs: Any) -> Any:
    """The output of one run, which leaves no trace for the next."""
    with undisturbed(network):
        return call(network, fresh(inputs))


def _twice(tensor: Tensor) -> Tensor:
    """Two examples for each."""
    return torch.cat([tensor, tensor]) if tensor.ndim else tensor


def _resized(tensor: Tensor) -> Tensor:
    """Images a quarter larger, of odd size where they were even and the other way round; sequences without a token."""
    if not tensor.is_floating_point():
        return tensor[:, 1:] if tensor.ndim > 1 and tensor.shape[1] > 1 else tensor
    for axis in range(2, tensor.ndim):
        size = tensor.shape[axis]
        added = (size // 4) | 1
        tensor = torch.cat([tensor, tensor.narrow(axis, 0, min(added, size))], axis)
    return tensor


def difference(candidate: nn.Module, model: nn.Module, runs: list[Run], keeps_class: bool) -> str | None:
    """Why a candidate differs from the model; None if it does not. Gives the candidate the model's training flags."""
    candidate.eval()
    coarsest = coarsest_precision(model)
    try:
        for run in runs:
            try:
                output = _trial(candidate, run.inputs)
            except Exception as err:
                if run.required or keeps_class:
                    return f"it does not run ({one_line(err)})"
                continue
            if not outputs_agree(output, run.output, coarsest):
                return "its output differs"
    finally:
        copy_flags(model, candidate)
    return None


def copy_flags(model: nn.Module, other: nn.Module) -> None:
    """Give another module tree the training flags of the model."""
    flags = {path: module.training for path, module in model.named_modules()}
    for path, module in other.named_modules():
        module.training = flags.get(path, model.training)


def training_difference(candidate: nn.Module, model: nn.Module, flow: Flow, runs: list[Run]) -> str | None:
    """Why a candidate may not train as the model does: auxiliary heads read what evaluation does not need."""
    reached = {alias for path, leaf in flow.leaves.items() if leaf.uses for alias in flow.aliases(path)}
    if all(path in reached for path, _ in model.named_parameters()):
        return None
    try:
        inputs = [run.inputs for run in runs if run.required][-1]
        _trial(hollow("compact", model).train(), inputs)
    except Exception:
        return "parts that evaluation does not use cannot be checked: the model does not run in training"
    try:
        _trial(hollow("compact", candidate).train(), inputs)
    except Exception as err:
        return f"its training forward does not run ({type(err).__name__})"
    return None


def hollow(verb: str, model: nn.Module) -> nn.Module:
    """A copy in evaluation mode that shares the model's tensors."""
    found = hollow_copy(model)
    if found is None:
        raise ConversionError(f"{verb}: {type(model).__name__} cannot be copied; make it deepcopy-able.")
    return found.eval()


def fresh(inputs: Any) -> Any:
    """Inputs that a model may write into."""
    return pytree.tree_map_only(Tensor, torch.clone, inputs)
