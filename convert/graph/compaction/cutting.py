"""The new weights: only the channels that stay, with the constants of removed channels folded into biases."""

from __future__ import annotations

import sys
from dataclasses import dataclass, field

import torch
from torch import Tensor, nn

from bensemble.torch_internals import BatchNormBase, ConvBase, buffers_of, parameters_of

from .atoms.flow import Flow, Leaf
from .atoms.readers import Reader
from .solution import Solution

__all__ = ["CannotKeepClassError", "Cut", "cut_leaves", "install"]


class CannotKeepClassError(Exception):
    """The smaller weights do not fit into the model's own modules; the message says why."""


@dataclass
class Cut:
    """New tensors by path, for all parameters and buffers that change.

    Attributes:
        tensors: In place of existing ones; tied ones under each of their paths.
        biases: Where there was none.
        groups: New numbers of groups of convolutions, by path of the weight.
    """

    tensors: dict[str, Tensor] = field(default_factory=dict)
    biases: dict[str, Tensor] = field(default_factory=dict)
    groups: dict[str, int] = field(default_factory=dict)


def cut_leaves(flow: Flow, solution: Solution) -> Cut:
    """Compute all new tensors; exact up to one rounding of each folded number."""
    cut = Cut()
    readers: dict[str, Reader] = {}
    for reader in flow.readers:
        readers.setdefault(reader.weight, reader)
    for path, leaf in flow.leaves.items():
        new = _cut_weight(leaf, readers[path], solution) if path in readers else _cut_leaf(leaf, solution)
        if new is not None:
            _put(cut, flow, path, new)
    for reader in readers.values():
        _fold(cut, flow, reader, solution)
        if reader.num_groups != solution.groups.get(reader.weight, reader.num_groups):
            cut.groups[reader.weight] = solution.groups[reader.weight]
    return cut


def _put(cut: Cut, flow: Flow, path: str, tensor: Tensor) -> None:
    for alias in flow.aliases(path):
        cut.tensors[alias] = tensor


def _cut_leaf(leaf: Leaf, solution: Solution) -> Tensor | None:
    """A leaf that is used element by element, or as a table."""
    alive = [] if leaf.value is None else solution.alive_axes(leaf.value)
    masks = {axis: mask for axis, mask in enumerate(alive) if mask is not None}
    masks |= {axis: solution.stays(atoms) for axis, atoms in leaf.axes.items()}
    if all(mask.all() for mask in masks.values()):
        return None
    return _select(leaf.tensor.detach(), masks)


def _select(tensor: Tensor, masks: dict[int, Tensor]) -> Tensor:
    for axis, mask in masks.items():
        tensor = tensor.index_select(axis, mask.nonzero().flatten().to(tensor.device))
    return tensor


def _cut_weight(leaf: Leaf, reader: Reader, solution: Solution) -> Tensor | None:
    """The rows and columns of a weight that stay; carriers take over the shares of removed constants."""
    inputs, outputs = solution.stays(reader.inputs), solution.stays(reader.outputs)
    if outputs.all() and solution.counts(reader.inputs).all():
        return None
    weight = _without_fillers(leaf.tensor.detach(), reader, solution)
    if reader.num_groups == 1:
        return _select(weight, {reader.out_axis: outputs, reader.in_axis: inputs})
    rows_in, rows_out = reader.grouped(inputs), reader.grouped(outputs)
    kept = [
        _select(slab, {reader.out_axis: rows_out[g], reader.in_axis: rows_in[g]})
        for g, slab in enumerate(_slabs(weight, reader))
        if rows_in[g].any()
    ]
    return torch.cat(kept, 0)


def _without_fillers(weight: Tensor, reader: Reader, solution: Solution) -> Tensor:
    """The weight with its carriers, and with zeros where it would read fillers."""
    inputs, outputs = solution.counts(reader.inputs), solution.counts(reader.outputs)
    if reader.carried and reader.shares(inputs, outputs).any():
        weight = _carry(weight, reader, inputs, outputs)
    missing = reader.grouped(~inputs)
    if (missing & reader.grouped(solution.stays(reader.inputs))).any():
        weight = weight.clone()
        for g, slab in enumerate(_slabs(weight, reader)):
            slab.movedim(reader.in_axis, -1)[..., missing[g].to(weight.device)] = 0
    return weight


def _slabs(weight: Tensor, reader: Reader) -> tuple[Tensor, ...]:
    """The weights of each group: every layout has the groups along its first axis."""
    return weight.chunk(reader.num_groups, 0)


def _carry(weight: Tensor, reader: Reader, inputs: Tensor, outputs: Tensor) -> Tensor:
    """W_ok + sum_i W_oi * c_i / c_k, in every group that needs it."""
    wide = weight.to(torch.float64).clone()
    shares = reader.grouped(reader.shares(inputs, outputs))
    carriers = reader.grouped(reader.carriers() & inputs)
    const = reader.grouped(reader.const).to(weight.device)
    for g, slab in enumerate(_slabs(wide, reader)):
        if shares[g].any():
            sizes = torch.where(carriers[g], reader.grouped(reader.const)[g].abs(), 0.0)
            carrier = int(sizes.argmax())
            missing = shares[g].nonzero().flatten().to(weight.device)
            ratio = const[g][missing] / const[g][carrier]
            by_input = slab.movedim(reader.in_axis, -1)
            by_input[..., carrier] += (by_input[..., missing] * ratio).sum(-1)
    return wide.to(weight.dtype)


def _fold(cut: Cut, flow: Flow, reader: Reader, solution: Solution) -> None:
    """b_o + sum_i W_oi * c_i over the removed constants."""
    outputs = solution.stays(reader.outputs)
    shares = reader.shares(solution.counts(reader.inputs), solution.counts(reader.outputs))
    if reader.carried or not shares.any():
        return
    weight = flow.leaves[reader.weight].tensor.detach()
    wide = weight.to(torch.float64).movedim((reader.out_axis, reader.in_axis), (0, 1))
    sums = wide.reshape(*wide.shape[:2], -1).sum(-1).cpu().reshape(reader.reads.shape)
    worth = torch.where(shares, reader.const, 0.0)
    shift = (sums * reader.grouped(worth)[:, None]).sum(2).reshape(-1)
    if reader.bias is None:
        assert reader.new_bias is not None
        cut.biases[reader.new_bias] = shift[outputs].to(weight.device, weight.dtype)
        return
    bias = flow.leaves[reader.bias].tensor.detach()
    new = (bias.to(torch.float64) + shift.to(bias.device)).to(bias.dtype)
    _put(cut, flow, reader.bias, new[outputs.to(bias.device)])


def install(root: nn.Module, cut: Cut, keep_class: bool) -> None:
    """Put the new tensors into a module tree, and tell its modules their new sizes.

    Args:
        root: A copy of the model, or the module of its graph.
        cut: The tensors.
        keep_class: Whether biases may only go where a module keeps a place for one.

    Raises:
        CannotKeepClassError: a bias has no such place.
    """
    made: dict[int, nn.Parameter] = {}
    touched: dict[str, nn.Module] = {}
    for path, tensor in cut.tensors.items():
        owner, name = _owner(root, path)
        if owner is None:
            continue
        if name in parameters_of(owner):
            old = parameters_of(owner)[name]
            wanted = old is None or old.requires_grad
            parameters_of(owner)[name] = made.setdefault(id(tensor), nn.Parameter(tensor.clone(), requires_grad=wanted))
        elif name in buffers_of(owner):
            buffers_of(owner)[name] = tensor.clone()
        else:
            continue
        touched[path] = owner
    for path, tensor in cut.biases.items():
        owner, name = _owner(root, path)
        if owner is None or (keep_class and parameters_of(owner).get(name, owner) is not None):
            raise CannotKeepClassError(f"there is no place for a bias at '{path}'")
        owner.register_parameter(name, nn.Parameter(tensor.clone()))
    for path, owner in touched.items():
        _tell_sizes(owner, cut.groups.get(path))


def _owner(root: nn.Module, path: str) -> tuple[nn.Module | None, str]:
    parent, _, name = path.rpartition(".")
    try:
        return root.get_submodule(parent), name
    except AttributeError:
        return None, name


def _tell_sizes(module: nn.Module, groups: int | None) -> None:
    """The sizes that torch.nn modules keep beside their weights."""
    if isinstance(module, nn.Linear):
        module.out_features, module.in_features = module.weight.shape
    elif isinstance(module, ConvBase):
        module.groups = groups or module.groups
        first, second = module.weight.shape[:2]
        second *= module.groups
        module.in_channels, module.out_channels = (first, second) if module.transposed else (second, first)
    elif isinstance(module, BatchNormBase):
        sizes = [t.shape[0] for t in (module.weight, module.running_mean) if t is not None]
        module.num_features = sizes[0] if sizes else module.num_features
    elif isinstance(module, nn.GroupNorm):
        per_group = module.num_channels // module.num_groups
        module.num_channels = module.weight.shape[0]
        module.num_groups = module.num_channels // per_group
    elif isinstance(module, nn.PReLU):
        module.num_parameters = module.weight.shape[0]
    elif isinstance(module, nn.Embedding):
        module.embedding_dim = module.weight.shape[1]
    elif (library := sys.modules.get("transformers.pytorch_utils")) and isinstance(module, library.Conv1D):
        module.nx, module.nf = module.weight.shape  # a user who has one has loaded transformers
