"""What a model does with each weight, as runs on example inputs show: every operation that torch runs.

The probe runs on a copy, because a forward may write into Parameters and buffers.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor, nn
from torch.overrides import TorchFunctionMode

from bensemble.models.undisturbed import undisturbed
from bensemble.torch_internals import pytree

from .analysis import Analysis
from .copying import traced_copy
from .entries import Entry
from .weight_paths import Trails, data_arguments, operation_name, writes_in_place

__all__ = ["probe_calls"]


def probe_calls(verb: str, model: nn.Module, calls: Sequence[Entry]) -> Analysis:
    """What calls on real inputs do, in evaluation mode, and in training mode for what evaluation leaves out.

    Raises:
        InvalidValueError: the model rejects one of them.
    """
    analysis = Analysis(source="probe")
    with undisturbed(model):
        copied = traced_copy(model)
        if copied is None:
            return Analysis()
        probed, originals = copied
        for training in (False, True):
            probed.train(training)
            for entry in calls:
                try:
                    _run(probed, entry, originals, analysis)
                except Exception as err:
                    if not training:
                        raise entry.rejected(verb, err) from err
            if analysis.is_complete(model):
                break
        analysis.written |= _changed(model, probed, originals)
    return analysis


def _run(probed: nn.Module, entry: Entry, originals: dict[int, int], analysis: Analysis) -> None:
    """Make one call and add what it does to the analysis."""
    calls: Counter[str] = Counter()
    handles = [
        module.register_forward_pre_hook(_counter(calls, path))
        for path, module in probed.named_modules()
        if not isinstance(module, torch.jit.ScriptModule)  # takes no hooks, and is not converted
    ]
    try:
        with _OperationRecorder(probed, originals, analysis):
            entry.run(probed)
    finally:
        for handle in handles:
            handle.remove()
        for path, count in calls.items():
            analysis.calls[path] = max(analysis.calls[path], count)


def _counter(calls: Counter[str], path: str) -> Any:
    def count(module: nn.Module, args: Any) -> None:
        calls[path] += 1

    return count


class _OperationRecorder(TorchFunctionMode):
    """Follows Parameters through every operation that torch runs."""

    def __init__(self, model: nn.Module, originals: dict[int, int], analysis: Analysis) -> None:
        super().__init__()
        self.originals = originals
        self.analysis = analysis
        self.trails = Trails(analysis.operations, analysis.altered)
        self.alive: list[Tensor] = []  # identities stay valid while the tensors live
        for parameter, original in originals.items():
            self.trails.start(parameter, original)
        for buffer in model.buffers():
            self.trails.start(id(buffer))

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        result = func(*args, **kwargs)
        operands = _tensors((args, kwargs))
        results = _tensors(result)
        if results and any(self.trails.knows(id(operand)) for operand in operands):
            self.analysis.seen |= {self.originals[id(o)] for o in operands if id(o) in self.originals}
            if writes_in_place(getattr(func, "__name__", "")):
                self.analysis.written |= {self.originals[id(r)] for r in results if id(r) in self.originals}
            name = operation_name(func)
            data = _tensors(data_arguments(name, args, kwargs))
            self.trails.apply(name, [id(o) for o in operands], [id(d) for d in data], [id(r) for r in results])
            self.alive += [r for r in results if self.trails.knows(id(r))]
        return result


def _tensors(value: Any) -> list[Tensor]:
    return [leaf for leaf in pytree.tree_leaves(value) if isinstance(leaf, Tensor)]


def _changed(model: nn.Module, probed: nn.Module, originals: dict[int, int]) -> set[int]:
    """Identities of the Parameters whose copies hold other values since the probe."""
    before = {id(parameter): parameter for parameter in model.parameters()}
    pairs = ((copied, before[originals[id(copied)]]) for copied in probed.parameters() if id(copied) in originals)
    return {id(p) for copied, p in pairs if not p.is_meta and not _same(copied, p)}


def _same(one: Tensor, other: Tensor) -> bool:
    return one.shape == other.shape and (torch.equal(one, other) or torch.equal(one.nan_to_num(), other.nan_to_num()))
