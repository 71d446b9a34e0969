"""Masks, what is left of a network behind them, and what compaction makes of it."""

from __future__ import annotations

import copy
import logging

import torch
from torch import Tensor, nn
from zoo.fingerprint import Fingerprint
from zoo.forward import first_difference, run
from zoo.subject import projection, training

import bensemble
import convert
from bensemble import named_posteriors, sampling
from bensemble.pruning.masks import apply_masks

from .subject import RandomSubject, assert_close

__all__ = ["compaction_is_exact", "masks_hold", "pruned_way_back_is_exact"]


def masks_hold(subject: RandomSubject) -> None:
    """Pruned weights are zero in the mean, in samples and in copies, and stay so through a training step."""
    bnn, masks = copy.deepcopy(subject.bnn), subject.masks()
    apply_masks(bnn, masks)
    _assert_pruned(bnn, masks)
    optimizer = torch.optim.Adam(bensemble.param_groups(bnn, lr=1e-3, rho_lr=1e-2))
    with training(bnn):
        loss = projection(run(bnn, subject.train_inputs, grad=True))
        assert loss is not None
        bensemble.elbo_loss(loss, bensemble.kl_divergence(bnn), num_data=1000).backward()
    grads = [p.grad for p in bnn.parameters() if p.grad is not None]
    assert all(bool(torch.isfinite(grad).all()) for grad in grads), "a gradient is not finite"
    optimizer.step()
    optimizer.zero_grad()
    fresh = copy.deepcopy(subject.bnn)  # of other weights, and without masks
    fresh.load_state_dict(bnn.state_dict(), strict=True)
    outputs = run(bnn, subject.example.inputs)
    for what, model in (("itself", bnn), ("deepcopy", copy.deepcopy(bnn)), ("state dict", fresh)):
        _assert_pruned(model, masks)
        difference = first_difference(outputs, run(model, subject.example.inputs))
        assert difference is None, f"{what}: {difference}"
    # Up to rounding: torch multiplies in another order by weights that need a gradient.
    back = run(convert.to_deterministic(bnn), subject.example.inputs)
    assert_close(outputs, back, subject.rounding, "way back after training")


def _assert_pruned(bnn: nn.Module, masks: dict[str, Tensor]) -> None:
    with torch.no_grad():
        for name, posterior in named_posteriors(bnn):
            mask = masks.get(name)
            assert (posterior.mask is None) == (mask is None), f"mask of {name}"
            if mask is None:
                continue
            path, _, leaf = name.rpartition(".")
            layer = bnn.get_submodule(path)
            mean = getattr(layer, leaf).clone()
            with sampling(layer):
                drawn = getattr(layer, leaf).clone()
            for what, value in (("mean", mean), ("sample", drawn)):
                assert not bool(value[mask == 0].any()), f"the {what} of {name} is not zero where it is pruned"
            assert torch.equal(mean[mask == 1], posterior.mu[mask == 1]), f"the mean of {name} where it is kept"


def pruned_way_back_is_exact(subject: RandomSubject) -> None:
    """Zeros exactly where the masks say, everything else as in the source; types, names and ties as well."""
    masks, source = subject.masks(), dict(subject.source.named_parameters())
    pruned = subject.pruned(subject.bnn)
    for name, parameter in pruned.named_parameters():
        expected = source[name] if name not in masks else source[name] * masks[name].to(source[name])
        assert torch.equal(parameter, expected), f"{name} is not the masked weight"
    with torch.no_grad():
        for name, parameter in pruned.named_parameters():
            parameter.copy_(source[name])
    Fingerprint(subject.source).compare(pruned, "pruned", identity=False)
    once, kept = subject.pruned(subject.bnn), subject.pruned(subject.bnn, keep_masks=True)
    inputs = subject.example.inputs
    assert_close(run(once, inputs), run(kept, inputs), subject.rounding, "keep_masks")


def compaction_is_exact(subject: RandomSubject) -> None:
    """The compacted network computes the same at another batch size, and no graph of it had to be given up."""
    pruned, inputs = subject.pruned(subject.bnn), subject.other_inputs
    told = _Warnings()
    logger = logging.getLogger("bensemble.compact")
    logger.addHandler(told)
    try:
        small = convert.compact(pruned, subject.example.inputs)
    finally:
        logger.removeHandler(told)
    assert not told.messages, f"compact warned: {told.messages}"
    assert_close(run(pruned, inputs), run(small, inputs), subject.rounding, "compacted")


class _Warnings(logging.Handler):
    def __init__(self) -> None:
        super().__init__(logging.WARNING)
        self.messages: list[str] = []

    def emit(self, record: logging.LogRecord) -> None:
        self.messages.append(record.getMessage() + (f" ({record.exc_info[1]!r})" if record.exc_info else ""))
