"""``repair``: what is left of a pruned network computes again what the whole network computed."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Iterator
from typing import Any, TypeVar

import torch
from torch import nn
from torch.nn.utils import parametrize

from bensemble.checks import check_module, check_number
from bensemble.errors import ConversionError, InvalidTypeError, InvalidValueError
from bensemble.models.batches import Unpack, check_loader
from bensemble.models.state import evaluating, unwrapped
from bensemble.models.undisturbed import unwritten
from bensemble.posteriors import is_bayesian

from ..planning.copying import check_shapes, copy_model
from .layers import Layer, repairable_layers
from .report import RepairReport, RepairRow
from .task import Task, removed_share
from .walking import Job, Walk

__all__ = ["repair", "repair_report"]

M = TypeVar("M", bound=nn.Module)


def repair(
    pruned: M,
    original: nn.Module,
    loader: Iterable[Any],
    *,
    damping: float | None = None,
    unpack: Unpack | None = None,
    generator: torch.Generator | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> M:
    """A copy of a pruned network whose remaining weights make up for the removed ones, without labels or training.

    Layer after layer, weights and bias solve least squares: from what the repaired network gives the layer, the outputs
    that the original computed, see :mod:`convert.repairing.solving`. Where something is added to the outputs, as in a
    residual network, what that lost is made up for too. Positions of a sequence count by the gradient of what the
    original returns, so padding that a mask leaves out does not. Zeros stay zero; ``torch.nn.utils.prune`` masks stay.
    Linear layers, convolutions and attention projections are repaired. A layer where this is no better on the last
    tenth of the batches is left as it was, and so is, bit for bit, one before which nothing was removed.

    Prune (``to_deterministic``), repair, then ``compact``. One pass over the loader for every group of layers that have
    the same inputs; about 2,000 inputs are enough.

    Args:
        pruned: A plain network with zeros among its weights, whoever removed them.
        original: The same network before.
        loader: Batches of inputs, read once for each group of layers; targets are not used.
        damping: Holds the weights where they were, as a multiple of the mean of the diagonal of the second moments of
            the inputs. At 0 exact where it can be. Default: chosen for each layer on the last tenth of the batches.
        unpack: ``callable(batch) -> (inputs, target)``.
        generator: Chooses the positions of images. Default: one with seed 0.
        progress: Called with (groups done, groups in all).

    Returns:
        A copy; ``repair_report`` says what happened to each layer.

    Raises:
        InvalidTypeError, InvalidValueError: An argument cannot work, or the networks do not have the same layers.
        ConversionError: A model is Bayesian, or cannot be copied.

    Example:
        >>> repaired = convert.repair(pruned, model, loader)
        >>> accuracy(repaired) > accuracy(pruned)
        tensor(True)
    """
    return _repaired("repair", pruned, original, loader, damping, unpack, generator, progress)[0]


def repair_report(
    pruned: nn.Module,
    original: nn.Module,
    loader: Iterable[Any],
    *,
    damping: float | None = None,
    unpack: Unpack | None = None,
    generator: torch.Generator | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> RepairReport:
    """What :func:`repair` does with the same arguments, layer by layer; the networks stay as they are.

    Example:
        >>> print(convert.repair_report(pruned, model, loader))
    """
    return _repaired("repair_report", pruned, original, loader, damping, unpack, generator, progress)[1]


@torch.no_grad()
def _repaired(
    verb: str,
    pruned: M,
    original: nn.Module,
    loader: Iterable[Any],
    damping: float | None,
    unpack: Unpack | None,
    generator: torch.Generator | None,
    progress: Callable[[int, int], None] | None,
) -> tuple[M, RepairReport]:
    _check(verb, pruned, original, loader, damping)
    network, dense = copy_model(verb, pruned), unwrapped(original)
    inner = unwrapped(network)
    generator = generator or torch.Generator().manual_seed(0)
    rows: list[RepairRow] = []
    with evaluating(inner, dense), torch.random.fork_rng():
        jobs, left = _jobs(verb, inner, dense)
        walk = Walk(inner, dense, loader, unpack)
        with unwritten(inner, dense):
            groups = walk.groups(jobs)
        for number, group in enumerate(groups):
            started = time.perf_counter()
            tasks = {job.label: Task(job, inner, dense, generator) for job in group}
            with unwritten(inner, dense):
                for pair in walk.passing(group):
                    tasks[pair.job.label].add(pair)
            shared = (time.perf_counter() - started) / len(group)
            rows += [task.finish(damping, shared) for task in tasks.values()]
            if progress is not None:
                progress(number + 1, len(groups))
    reached = {job.label for group in groups for job in group}
    left |= {job.layers[0]: "not reached by these inputs" for job in jobs if job.label not in reached}
    rows += [RepairRow(layer.label, removed_share(layer, inner), note=note) for layer, note in left.items()]
    return network, RepairReport(tuple(rows))


def _check(verb: str, pruned: Any, original: Any, loader: Any, damping: Any) -> None:
    for what, model in (("pruned", pruned), ("original", original)):
        if is_bayesian(check_module(verb, model)):
            raise ConversionError(
                f"{verb}: {what} must be a plain network, got a Bayesian {type(model).__name__}; first "
                "to_deterministic, then repair, then compact."
            )
        check_shapes(verb, model)
    if damping is not None:
        check_number(verb, "damping", damping, least=0)
    check_loader(verb, loader)
    if isinstance(loader, Iterator):
        raise InvalidTypeError(
            f"{verb}: loader is read once for each layer, got {type(loader).__name__}, which can be read once; pass a "
            "DataLoader or a list."
        )


def _jobs(verb: str, network: nn.Module, dense: nn.Module) -> tuple[list[Job], dict[Layer, str]]:
    """The weights to solve for, and those that are left with the reason."""
    layers, others = list(repairable_layers(network)), {layer.label: layer for layer in repairable_layers(dense)}
    for layer in layers:
        shape = tuple(layer.tensors(network)[0].shape)
        other = others.get(layer.label)
        found = None if other is None else tuple(other.tensors(dense)[0].shape)
        if found != shape:
            raise InvalidValueError(
                f"{verb}: '{layer.name}' must have the shape that it has in the original, got {shape} instead of "
                f"{found}; first to_deterministic, then repair, then compact."
            )
    here, before = ([removed_share(layer, of) for layer in layers] for of in (network, dense))
    if sum(before) > sum(here) and all(b >= h for b, h in zip(before, here, strict=True)):
        raise InvalidValueError(
            f"{verb}: the pruned network comes first, then the original, got more zeros in the second; exchange them."
        )
    names: dict[int, set[str]] = {}
    for name, parameter in network.named_parameters(remove_duplicate=False):
        names.setdefault(id(parameter), set()).add(name.removesuffix("_orig"))
    jobs: dict[tuple[int, int], list[Layer]] = {}
    left: dict[Layer, str] = {}
    for layer in layers:
        module = network.get_submodule(layer.owner)
        own = _parameter(module, layer.weight)
        elsewhere = set() if own is None else names[id(own)] - {other.name for other in layers}
        if own is None:
            left[layer] = "computed in every forward"
        elif not own.numel() or own.is_meta:
            left[layer] = "without values"
        elif elsewhere:
            left[layer] = f"shared with '{min(elsewhere)}'"
        else:
            jobs.setdefault((id(own), getattr(layer, "index", 0)), []).append(layer)
    for key, shared in list(jobs.items()):
        biases = {id(layer.tensors(network)[1]) for layer in shared}
        if len({type(layer) for layer in shared}) > 1 or (len(biases) > 1):
            left[shared[0]] = "shared by layers of other kinds or biases"
            del jobs[key]
    return [Job(tuple(shared)) for shared in jobs.values()], left


def _parameter(module: nn.Module, name: str) -> nn.Parameter | None:
    """The Parameter behind a weight, under a mask or not; None where the weight is computed."""
    if parametrize.is_parametrized(module, name):
        return None
    masked = getattr(module, f"{name}_orig", None) if hasattr(module, f"{name}_mask") else None
    found = getattr(module, name) if masked is None else masked
    return found if isinstance(found, nn.Parameter) else None
