"""Whether the noise of every posterior arrives, where the source makes use of the weight."""

from __future__ import annotations

import copy
import random
import time
from contextlib import nullcontext

import torch
from torch import Tensor, nn

import convert
from bensemble import sampling

from ..forward import distance, first_difference, floating, identical, run, scale, seed_all
from ..subject import FAINT, SILENT, Subject, all_rho, projection, training


def held_sample_is_used_everywhere(subject: Subject) -> None:
    """Inside ``sampling`` the model computes what a plain copy computes with the held weights written into it."""
    plain = copy.deepcopy(subject.source)
    parameters, inputs = dict(plain.named_parameters()), subject.example.inputs
    with sampling(subject.bnn, torch.Generator().manual_seed(1)), torch.no_grad():
        for name in subject.posteriors:
            held = _attribute(subject.bnn, name)
            assert not torch.equal(held, parameters[name]), f"the sample of {name} is its mean"
            parameters[name].copy_(held)
        sampled = run(subject.bnn, inputs)
        again = run(subject.bnn, inputs, seed=0)
    difference = first_difference(sampled, again)
    assert difference is None, f"the sample is not held: {difference}"
    assert first_difference(subject.outputs, sampled) is not None, "the sample is the mean"
    expected = run(plain, inputs)
    bad = [p for p, v in expected.items() if not close(v, sampled.get(p)) and not identical(v, subject.outputs[p])]
    same = first_difference(expected, sampled)
    subject.result.facts["sample_bit_equal"] = same is None
    assert not bad, f"a plain copy with the held weights computes something else: {same}"


def close(one: Tensor, other: Tensor | None) -> bool:
    if other is None or one.shape != other.shape:
        return False
    return identical(one, other) or distance(one, other) <= 1e-5 * scale(one)


def _attribute(model: nn.Module, name: str) -> Tensor:
    path, _, leaf = name.rpartition(".")
    value = getattr(model.get_submodule(path), leaf)
    return value.as_subclass(Tensor) if type(value) is not Tensor else value


def every_posterior_moves_the_output(subject: Subject) -> None:
    """With every other sigma 0, the noise of each posterior changes the output, or the source takes no notice either.

    The source is asked with the very sample in place of its weight: a unit that one sample wakes another may not.

    The gradient with respect to rho at vanishing noise sees all posteriors in one pass; then as many as the budget
    allows are moved one by one, first those without a gradient.
    """
    posteriors, inputs = subject.posteriors, subject.example.inputs
    felt = _felt_by_gradient(subject)
    order = sorted(posteriors)
    random.Random(0).shuffle(order)
    order.sort(key=lambda name: name in felt)
    tried, deadline = 0, time.process_time() + subject.budget
    unmoved: dict[str, Tensor] = {}
    with all_rho(subject.bnn, SILENT) as original, torch.no_grad():
        difference = first_difference(subject.outputs, run(subject.bnn, inputs))
        assert difference is None, f"the mean depends on sigma: {difference}"
        for name in order:
            if name in felt and time.process_time() > deadline:
                break
            tried += 1
            posterior = posteriors[name]
            posterior.rho.data.copy_(original[id(posterior.rho)])
            owner = _owner(subject.bnn, name)
            if not _moves(subject, owner):
                posterior.rho.data.copy_(original[id(posterior.rho)] + 3.0)  # coarse outputs, saturated units
                if not _moves(subject, owner):
                    unmoved[name] = _drawn(subject, owner, name)
            posterior.rho.data.fill_(SILENT)
    ignored = [name for name, drawn in unmoved.items() if not source_reads(subject, name, drawn)]
    subject.result.facts["moved_one_by_one"] = tried
    subject.result.facts["ignored_by_the_source"] = ignored
    lost = sorted(set(unmoved) - set(ignored))
    assert not lost, f"{len(lost)} of {len(posteriors)} do not reach the output: {lost[:5]}"


def check_noise_agrees(subject: Subject) -> None:
    """``check_noise`` finds silent exactly what this zoo found; asked where its forwards fit the budget."""
    facts = subject.result.facts
    if facts["posteriors"] * facts["forward_seconds"] > subject.budget / 2 or "ignored_by_the_source" not in facts:
        return
    report = convert.check_noise(subject.bnn, subject.example.inputs)
    silent = {row.name for row in report.silent}
    assert {row.name for row in report.rows} == set(subject.posteriors), "not one row for each posterior"
    assert all(row.reason for row in report.silent), "silent without a reason"
    wrong = sorted(name for name in silent - set(facts["ignored_by_the_source"]) if source_reads(subject, name))
    assert not wrong, f"check_noise calls silent what the source reads: {wrong[:4]}"


def _felt_by_gradient(subject: Subject) -> set[str]:
    """Names of the posteriors whose rho receives a gradient from the output at vanishing noise."""
    with all_rho(subject.bnn, FAINT):
        seed_all(1)
        with sampling(subject.bnn, torch.Generator().manual_seed(2)):
            try:
                outputs = run(subject.bnn, subject.example.inputs, grad=True)
                loss = projection(outputs)
                if loss is None:
                    return set()
                loss.backward()
            except (RuntimeError, MemoryError):
                subject.bnn.zero_grad(set_to_none=True)
                return set()
        felt = {n for n, p in subject.posteriors.items() if p.rho.grad is not None and bool((p.rho.grad != 0).any())}
    subject.bnn.zero_grad(set_to_none=True)
    return felt


def _owner(bnn: nn.Module, name: str) -> nn.Module:
    """The module to draw for: the posterior's own where nothing else shares it, which saves drawing the rest."""
    owner = bnn.get_submodule(name.rpartition(".")[0])
    mine = {id(p) for p in owner.parameters(recurse=False)}
    uses = sum(id(p) in mine for _, p in bnn.named_parameters(remove_duplicate=False))
    return owner if uses == len(mine) else bnn


def _moves(subject: Subject, owner: nn.Module) -> bool:
    with sampling(owner, torch.Generator().manual_seed(3)):
        return first_difference(subject.outputs, run(subject.bnn, subject.example.inputs)) is not None


def _drawn(subject: Subject, owner: nn.Module, name: str) -> Tensor:
    """The sample that :func:`_moves` tried."""
    with sampling(owner, torch.Generator().manual_seed(3)):
        drawn = _attribute(subject.bnn, name).detach().clone()
    assert not torch.equal(drawn, dict(subject.source.named_parameters())[name]), f"the sample of {name} is its mean"
    return drawn


def source_reads(subject: Subject, name: str, value: Tensor | None = None, train: bool = False) -> bool:
    """Whether another value of the weight, by default twenty sigma away, moves the source by more than rounding does.

    Attention ignores the bias of its keys, for instance: it shifts all scores of a query alike. In training, batch
    norms ignore the bias before them.
    """
    parameter = dict(subject.source.named_parameters())[name]
    kept = parameter.detach().clone()
    noise = torch.randn(kept.shape, generator=torch.Generator().manual_seed(3))
    inputs = subject.train_inputs if train else subject.example.inputs
    with training(subject.source) if train else nullcontext():
        before = run(subject.source, inputs) if train else subject.outputs
    try:
        moved_by = (20 * subject.posteriors[name].sigma().detach() * noise).to(kept.dtype)
        parameter.data.copy_(kept + moved_by if value is None else value)
        with training(subject.source) if train else nullcontext():
            moved = run(subject.source, inputs)
    finally:
        parameter.data.copy_(kept)
    return any(
        moved[path].shape != value.shape or distance(value, moved[path]) > 1e-5 * scale(value)
        for path, value in before.items()
        if path in moved
    )


def train_mode_is_noisy(subject: Subject) -> None:
    """In train mode the weights' noise reaches the output: the same random state without it gives other numbers."""
    with training(subject.bnn):
        noisy = run(subject.bnn, subject.train_inputs)
    with all_rho(subject.bnn, SILENT), training(subject.bnn):
        silent = run(subject.bnn, subject.train_inputs)
    assert list(noisy) == list(silent) or len(noisy) > 0
    assert first_difference(floating(noisy), floating(silent)) is not None, "no noise in train mode"
    for path, value in floating(noisy).items():
        if path in silent and bool(torch.isfinite(silent[path]).all()):
            assert bool(torch.isfinite(value).all()), f"{path} is not finite in train mode"
