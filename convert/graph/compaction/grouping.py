"""``channel_groups``: which channels of a Bayesian network can only go together, as its graph shows.

Residual additions, gates, depthwise convolutions and norms unite the channels of several layers; attention unites what
makes the queries, keys and values of a head. Such a group goes when all weights that make it are zero: then it is
constant, and ``compact`` folds the constant into what reads it. Where it would not be constant (a head with a bias
behind a mask, a layer without a posterior among those that make it), the weights that read it are pruned with it.
"""

from __future__ import annotations

from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor, nn

from bensemble.errors import ConversionError
from bensemble.models.undisturbed import undisturbed
from bensemble.posteriors import all_names, check_bayesian, named_posteriors
from bensemble.pruning.channels import ChannelGroups

from ...surgery.collapsing import to_deterministic
from ..capture import SOURCES, Capture, CaptureError, capture
from .atoms.flow import Flow
from .atoms.readers import Reader
from .equivalence import fresh, hollow, reference_runs
from .propagate import propagate
from .solving import settle
from .worklist import settle_worklist

__all__ = ["channel_groups"]


def channel_groups(bnn: nn.Module, example_inputs: Any) -> ChannelGroups:
    """Channels, attention heads and hidden neurons of a Bayesian network that can only go together.

    Hand it to pruning as the ``granularity``: what is pruned by it, :func:`convert.compact` removes. Outputs of the
    model never go, nor do channels that a layer norm reads, of which each needs all others. Channels of a grouped
    convolution go by whole groups, or, where the groups are few and large, one from each of them.

    Args:
        bnn: A model with Bayesian layers. It is left untouched, as is the random state.
        example_inputs: What its forward takes: a tensor, a tuple of arguments, or a mapping of keyword arguments.

    Raises:
        ConversionError: Neither torch.fx nor torch.export can trace the model.
        InvalidValueError: The model has no Bayesian layers, or rejects the example inputs.

    Example:
        >>> bnn = convert.bayesify(model)
        >>> pruned = convert.to_deterministic(bnn, sparsity=0.5, granularity=convert.channel_groups(bnn, x))
        >>> small = convert.compact(pruned, x)
    """
    check_bayesian("channel_groups", bnn)
    plain = to_deterministic(bnn)
    names = all_names(bnn)
    prunable = {name for name, posterior in named_posteriors(bnn) if posterior.prunable}
    weights = {path: name for path, name in names.items() if name in prunable}
    with undisturbed(plain):
        run = reference_runs("channel_groups", plain, example_inputs)[0]
        found: list[ChannelGroups] = []
        notes: list[str] = []
        for source in SOURCES:
            try:
                captured = capture(source, hollow("channel_groups", plain), fresh(run.inputs), run.output)
            except CaptureError as err:
                notes.append(str(err))
                continue
            found.append(_groups(captured, plain, weights))
            if not found[-1].notes:
                break
    if not found:
        raise ConversionError(
            f"channel_groups: {type(bnn).__name__} cannot be traced, got {'; '.join(notes)}; "
            "granularity='channel' prunes the channels of each layer by themselves."
        )
    # the graph by which most could go, about
    return max(found, key=lambda groups: sum(float((ids >= 0).float().mean()) for ids in groups.made.values()))


def _groups(captured: Capture, plain: nn.Module, weights: dict[str, str]) -> ChannelGroups:
    """The groups that one graph of the network at its mean shows; the weights that pruning may touch, by path."""
    flow = propagate(captured, plain)
    settle(flow)
    _tie_groups(flow)
    candidates = _candidates(flow, weights)
    without = _without(candidates, flow, captured, plain, weights)
    candidates, needed = _that_can_go(flow, without, candidates, weights)
    made: dict[str, Tensor] = {}
    read: dict[str, Tensor] = {}
    for reader in flow.readers:
        for part, ids in ((made, candidates.made_by(reader)), (read, needed.read_by(reader))):
            if reader.weight in weights and (ids >= 0).any():
                part[weights[reader.weight]] = ids
    return ChannelGroups(made, read, tuple(dict.fromkeys(reason for _, reason in flow.unknowns)))


def _tie_groups(flow: Flow) -> None:
    """Grouped convolutions keep groups of equal size: whole groups go, or one channel of each where that is finer."""
    for sizes in flow.groups:
        whole = sizes.outputs.shape[0] >= max(sizes.inputs.shape[1], sizes.outputs.shape[1])
        for atoms in (sizes.inputs, sizes.outputs):
            flow.atoms.tie(atoms, 1 if whole else 0, "groups of a convolution are of equal size")
        if whole:
            flow.atoms.unite(sizes.inputs[:, 0], sizes.outputs[:, 0])
    settle_worklist(flow)


@dataclass(frozen=True)
class _Numbers:
    """A number for every group that may go.

    Attributes:
        roots: For every atom the representative of its set.
        numbers: For every representative the number of its group, -1 for what stays.
        shapes: Of the weights, by path.
    """

    roots: Tensor
    numbers: Tensor
    shapes: dict[str, torch.Size]

    def of(self, atoms: Tensor) -> Tensor:
        """The group of every atom."""
        return self.numbers[self.roots[atoms]]

    def made_by(self, reader: Reader) -> Tensor:
        """The group that each entry of the weight helps to make, in a shape that broadcasts to it."""
        return self._along(reader, self.of(reader.outputs), reader.out_axis, reader.in_axis)

    def read_by(self, reader: Reader) -> Tensor:
        """The group that each entry of the weight reads, in a shape that broadcasts to it."""
        return self._along(reader, self.of(reader.inputs), reader.in_axis, reader.out_axis)

    def _along(self, reader: Reader, ids: Tensor, axis: int, other: int) -> Tensor:
        shape = self.shapes[reader.weight]
        wide = [1] * len(shape)
        wide[axis] = shape[axis]
        if len(ids) == shape[axis]:
            return ids.reshape(wide)
        # The axis counts positions within a group of the convolution; the groups lie along the other axis.
        wide[other] = shape[other]
        by_group = ids.reshape(reader.num_groups, 1, -1).expand(-1, shape[other] // reader.num_groups, -1)
        matrix = by_group.reshape(shape[other], shape[axis])
        return (matrix if other < axis else matrix.T).reshape(wide)


def _candidates(flow: Flow, weights: dict[str, str]) -> _Numbers:
    """Sets of channels that nothing pins, and that leave every layer others."""
    roots = flow.atoms.find(torch.arange(len(flow.atoms)))
    stays = torch.zeros(len(roots), dtype=torch.bool)
    for atoms, _ in flow.atoms.pins:
        stays[roots[atoms]] = True
    makers = [reader for reader in flow.readers if reader.weight in weights]
    for reader in makers:
        rows = roots[reader.outputs]
        if bool((rows == rows[0]).all()):
            stays[rows[0]] = True
    numbers = torch.full((len(roots),), -1)
    for reader in makers:
        rows = roots[reader.outputs].unique()
        numbers[rows[~stays[rows]]] = 0
    numbers[numbers == 0] = torch.arange(int((numbers == 0).sum()))
    return _Numbers(roots, numbers, {path: leaf.tensor.shape for path, leaf in flow.leaves.items()})


def _without(candidates: _Numbers, flow: Flow, captured: Capture, plain: nn.Module, weights: dict[str, str]) -> Flow:
    """What the graph shows where all weights that make a candidate are zero."""
    kept: dict[Tensor, Tensor] = {}
    try:
        for reader in flow.readers:
            tensor = flow.leaves[reader.weight].tensor
            if reader.weight in weights:
                kept.setdefault(tensor, tensor.clone())
                tensor.mul_((candidates.made_by(reader) < 0).to(tensor))
        without = propagate(captured, plain)
        settle(without)
        return without
    finally:
        for tensor, values in kept.items():
            tensor.copy_(values)


def _that_can_go(flow: Flow, without: Flow, candidates: _Numbers, weights: dict[str, str]) -> tuple[_Numbers, _Numbers]:
    """The groups that pruning can end, and those of them whose readers have to be pruned for that."""
    count = int(candidates.numbers.max()) + 1
    varies, unmade, unread = (torch.zeros(count + 1, dtype=torch.bool) for _ in range(3))  # the last one is -1
    for reader, left in zip(flow.readers, without.readers, strict=True):
        read = candidates.of(reader.inputs[reader.reads.any(1).reshape(-1)])
        known = left.known[reader.reads.any(1).reshape(-1)]
        varies[read[~known]] = True
        if reader.weight not in weights:
            unmade[candidates.of(reader.outputs)] = True
            unread[read] = True
    needs_readers = varies | unmade
    gone = ~(needs_readers & unread)
    gone[-1] = False
    numbers = torch.where(gone, gone.cumsum(0) - 1, -1)
    renumbered = numbers[candidates.numbers]
    read_too = torch.where(needs_readers[candidates.numbers], renumbered, -1)
    return replace(candidates, numbers=renumbered), replace(candidates, numbers=read_too)
