"""Forward and backward in train mode."""

from __future__ import annotations

import torch

from ..forward import run
from ..subject import Subject, projection, training


def gradients_arrive(subject: Subject) -> None:
    """Forward and backward in train mode: finite, on every mu and rho that the source has a gradient for."""
    wanted, moving = source_gradients(subject)
    posteriors, missing, quiet = subject.posteriors, set(), set()
    plain = dict(subject.bnn.named_parameters())
    for seed in range(4):  # routing and sampling may leave a weight out by chance
        with training(subject.bnn):
            outputs = run(subject.bnn, subject.train_inputs, seed=seed, grad=True)
            loss = projection(outputs)
            if loss is None:
                assert not wanted, "the source gives gradients, the Bayesian model none"
                return
            loss.backward()
        missing, quiet = set(), set()
        for name in wanted:
            tensors = (posteriors[name].mu, posteriors[name].rho) if name in posteriors else (plain[name],)
            if any(t.grad is None and t.requires_grad for t in tensors):
                missing.add(name)
            elif name in moving and any(t.requires_grad and not bool((t.grad != 0).any()) for t in tensors):
                quiet.add(name)
        if not missing and not quiet:
            break
    bad = [n for n, p in plain.items() if p.grad is not None and not bool(torch.isfinite(p.grad).all())]
    subject.bnn.zero_grad(set_to_none=True)
    run(subject.bnn, subject.example.inputs)  # modules that keep a tensor of the last forward drop the graph
    assert not bad, f"not finite: {len(bad)} gradients: {bad[:4]}"
    assert not missing, f"no gradient on {len(missing)} of {len(wanted)}: {sorted(missing)[:5]}"
    assert not quiet, f"zero gradient on {len(quiet)} of {len(wanted)}: {sorted(quiet)[:5]}"
    subject.result.facts["gradients"] = len(wanted)


def source_gradients(subject: Subject) -> tuple[set[str], set[str]]:
    """Names of the parameters that the source gives a gradient for, and of those where it is not zero."""
    with training(subject.source):
        loss = projection(run(subject.source, subject.train_inputs, grad=True))
        if loss is not None:
            loss.backward()
    named = {n: p.grad for n, p in subject.source.named_parameters() if p.grad is not None}
    assert all(bool(torch.isfinite(g).all()) for g in named.values()), "the source's own gradients are not finite"
    moving = {n for n, g in named.items() if bool((g != 0).any())}
    subject.source.zero_grad(set_to_none=True)
    run(subject.source, subject.example.inputs)
    return set(named), moving
