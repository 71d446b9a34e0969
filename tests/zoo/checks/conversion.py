"""What the conversion makes: the mean, one posterior for each weight, a plan that accounts for all of them."""

from __future__ import annotations

import time
from collections.abc import Iterator

import torch

import convert
from bensemble import kl_divergence

from ..coverage import measure_coverage
from ..forward import first_difference, run
from ..subject import Subject


def conversion_succeeds(subject: Subject) -> None:
    """``bayesify`` returns, and finds something."""
    start = time.process_time()
    subject.bnn = convert.bayesify(subject.source)
    subject.result.facts["bayesify_seconds"] = round(time.process_time() - start, 2)
    subject.result.facts["posteriors"] = len(subject.posteriors)
    assert subject.posteriors, "no posterior at all"
    assert type(subject.bnn).__qualname__ == type(subject.source).__qualname__, f"became {type(subject.bnn)}"


def mean_is_bit_equal(subject: Subject) -> None:
    """In eval the Bayesian model computes what the source computes."""
    difference = first_difference(subject.outputs, run(subject.bnn, subject.example.inputs))
    assert difference is None, difference
    assert all(m.training == n.training for m, n in zip(subject.bnn.modules(), subject.source.modules(), strict=True))


def posteriors_match_parameters(subject: Subject) -> None:
    """One posterior for each distinct converted Parameter, its mean the weight, everything else as it was."""
    source = dict(subject.source.named_parameters())
    posteriors = subject.posteriors
    strangers = sorted(set(posteriors) - set(source))
    assert not strangers, f"posteriors without a parameter of that name: {strangers[:4]}"
    for name, posterior in posteriors.items():
        assert torch.equal(posterior.mu, source[name]), f"mean of {name} is not the weight"
        assert posterior.rho.requires_grad, f"rho of {name} is frozen"
        assert posterior.mu.requires_grad == source[name].requires_grad, f"requires_grad of {name}"
        smallest, largest = map(float, posterior.sigma().detach().aminmax())
        assert 0 < smallest <= largest < float("inf"), f"sigma of {name}"
    own = {id(t) for p in posteriors.values() for t in (p.mu, p.rho)}
    left = {name: p for name, p in subject.bnn.named_parameters() if id(p) not in own}
    assert len({id(p.mu) for p in posteriors.values()}) == len(posteriors), "two posteriors share one mean"
    lost = sorted(set(source) - set(posteriors) - set(left))
    assert not lost, f"neither converted nor left: {lost[:4]}"
    assert len(left) + len(posteriors) == len(source), "more parameters than posteriors and what was left"
    for name, parameter in left.items():
        assert torch.equal(parameter, source[name]), f"{name} changed"
    kl = float(kl_divergence(subject.bnn).detach())
    weights = sum(p.mu.numel() for p in posteriors.values())
    assert -1e-5 * weights <= kl < float("inf"), f"KL is {kl}"  # up to rounding: centred on the weights it starts at 0


def plan_accounts_for_everything(subject: Subject) -> None:
    """Each parameter has a row, under each of its names, and the rows say what bayesify does."""
    made = convert.plan(subject.source)
    names = {name for row in made.rows for name in (row.name, *row.aliases)}
    wanted = {name for name, _ in subject.source.named_parameters(remove_duplicate=False)}
    assert names == wanted, f"missing rows {sorted(wanted - names)[:4]}, rows of nothing {sorted(names - wanted)[:4]}"
    bayesian = {row.name for row in made.rows if row.tier != "deterministic"}
    assert bayesian == set(subject.posteriors), (
        f"plan and model differ: {sorted(bayesian ^ set(subject.posteriors))[:4]}"
    )
    silent = [row.name for row in made.rows if row.tier == "deterministic" and not row.reason]
    assert not silent, f"deterministic without a reason: {silent[:4]}"
    lines = str(made).splitlines()
    assert len(lines) <= 40, f"the plan prints {len(lines)} lines"
    subject.result.facts["tiers"] = {
        t: sum(r.tier == t for r in made.rows) for t in sorted({r.tier for r in made.rows})
    }
    subject.result.facts["reasons"] = _tally(row.reason for row in made.rows if row.tier == "deterministic")
    convert.bayesify(subject.source, plan=made)


def coverage_is_high(subject: Subject) -> None:
    """No matrix is left out: what stays deterministic is a position table, a token or a vector, each named.

    Biases with a dimension for heads or experts take up to 3 % of these narrow models, and nothing of a real one. The
    99 % that count are those of a whole library.
    """
    coverage = measure_coverage(subject.source, set(subject.posteriors))
    subject.result.facts["eligible"] = coverage.eligible
    subject.result.facts["bayesian"] = coverage.bayesian
    subject.result.facts["exempt"] = coverage.exempt
    subject.result.facts["left_out"] = coverage.left_out
    matrices = {name: size for name, size in coverage.left_out.items() if not coverage.is_small_part(name)}
    assert sum(matrices.values()) <= 0.03 * coverage.eligible, f"{coverage.share:.2%} Bayesian; left out: {matrices}"


def _tally(reasons: Iterator[str]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for reason in reasons:
        counts[reason] = counts.get(reason, 0) + 1
    return counts
