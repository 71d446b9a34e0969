"""Every check on one model, each a function that raises AssertionError with the finding.

The oracles are black boxes: a bit-for-bit comparison with the source, a plain copy of the source with the held sample
written into it by hand, gradients of the source. Nothing here asks the library whether it did well.
"""

from __future__ import annotations

import copy
import io
import pickle
import random
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

import convert
from bensemble.frames import sampling
from bensemble.objective import kl_divergence
from bensemble.posterior import Posterior, named_posteriors

from .coverage import measure_coverage
from .entries import Entry, Example
from .forward import distance, first_difference, floating, identical, run, scale, seed_all
from .perturbation import enliven
from .result import Result

#: softplus of it is 0 in float32: no noise at all.
SILENT = -200.0
#: softplus of it is 2e-9: the gradient with respect to rho exists, and the noise changes nothing.
FAINT = -20.0


@dataclass
class Subject:
    """One model under test, with what the checks share."""

    source: nn.Module
    example: Example
    result: Result
    budget: float
    bnn: nn.Module = field(init=False)
    outputs: dict[str, Tensor] = field(init=False)

    @property
    def posteriors(self) -> dict[str, Posterior]:
        """Every posterior by the original name of its weight."""
        return dict(named_posteriors(self.bnn))

    @property
    def train_inputs(self) -> Any:
        """Inputs for train mode."""
        return self.example.inputs if self.example.train_inputs is None else self.example.train_inputs


def check_entry(entry: Entry, result: Result, budget: float = 40.0, source_only: bool = False) -> None:
    """Build the model and run every check, writing into ``result``.

    Args:
        entry: What to build.
        result: Gains passed and failed checks and facts.
        budget: Seconds for moving posteriors one at a time.
        source_only: Only see whether the entry itself is sound.
    """
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        subject = prepare(entry, result, budget)
        _attempt(entry, subject, source_is_sound)
        if source_only or result.failed:
            return
        before = Fingerprint(subject.source)
        if not _attempt(entry, subject, conversion_succeeds):
            return
        for check in CHECKS:
            _attempt(entry, subject, check)
        _attempt(entry, subject, lambda s: source_is_untouched(s, before), "source_is_untouched")


def prepare(entry: Entry, result: Result, budget: float) -> Subject:
    """Build the entry with random weights that all matter, in eval mode."""
    seed_all(0)
    example = entry.build()
    model = example.model
    model.eval()
    enliven(model, lambda: run(model, example.inputs))
    return Subject(model, example, result, budget)


def _attempt(entry: Entry, subject: Subject, check: Callable[[Subject], None], name: str = "") -> bool:
    """Run one check and file its outcome."""
    name, result, start = name or check.__name__, subject.result, time.monotonic()
    try:
        check(subject)
    except AssertionError as err:
        message = str(err)
    except Exception as err:
        frames = [f"{f.filename.rsplit('/', 2)[-1]}:{f.lineno}" for f in _frames(err)][-4:]
        message = f"{type(err).__name__}: {err}"[:400] + f" [{' '.join(frames)}]"
    else:
        message = ""
    result.facts.setdefault("check_seconds", {})[name] = round(time.monotonic() - start, 1)
    excuse = entry.known.get(name)
    if message and excuse:
        result.excused[name] = excuse
    elif message:
        result.failed[name] = message
    elif excuse:
        result.failed[name] = f"passes, but is listed with: {excuse}"
    else:
        result.passed.append(name)
    return not message


def _frames(err: BaseException) -> Iterator[Any]:
    import traceback

    yield from traceback.extract_tb(err.__traceback__)


# -- before the conversion


def source_is_sound(subject: Subject) -> None:
    """The entry itself: repeatable, finite, able to train. A failure here is an error of the zoo."""
    source, inputs = subject.source, subject.example.inputs
    start = time.monotonic()
    subject.outputs = run(source, inputs)
    subject.result.facts["forward_seconds"] = round(time.monotonic() - start, 2)
    distinct = list(source.parameters())
    subject.result.facts["parameters"] = sum(p.numel() for p in distinct)
    subject.result.facts["tensors"] = len(distinct)
    assert floating(subject.outputs), f"no floating output among {list(subject.outputs)}"
    difference = first_difference(subject.outputs, run(source, inputs))
    assert difference is None, f"two forwards in eval differ: {difference}"
    for path, value in floating(subject.outputs).items():
        assert bool((~torch.isnan(value)).all()), f"{path} is NaN"
        assert scale(value) < 1e12, f"{path} reaches {scale(value):.1g}"
    assert max(map(_spread, floating(subject.outputs).values())) > 1e-6, "the outputs are constant"
    with _training(source):
        one = run(source, subject.train_inputs)
    with _training(source):
        difference = first_difference(one, run(source, subject.train_inputs))
    assert difference is None, f"two forwards in train differ: {difference}"


def _spread(value: Tensor) -> float:
    return float((value.to(torch.complex64) - value.to(torch.complex64).mean()).abs().max()) if value.numel() else 0.0


def conversion_succeeds(subject: Subject) -> None:
    """``bayesify`` returns, and finds something."""
    start = time.monotonic()
    subject.bnn = convert.bayesify(subject.source)
    subject.result.facts["bayesify_seconds"] = round(time.monotonic() - start, 2)
    subject.result.facts["posteriors"] = len(subject.posteriors)
    assert subject.posteriors, "no posterior at all"
    assert type(subject.bnn).__qualname__ == type(subject.source).__qualname__, f"became {type(subject.bnn)}"


# -- the converted model


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
        assert bool(torch.isfinite(posterior.sigma()).all() and (posterior.sigma() > 0).all()), f"sigma of {name}"
    own = {id(t) for p in posteriors.values() for t in (p.mu, p.rho)}
    left = {name: p for name, p in subject.bnn.named_parameters() if id(p) not in own}
    assert len({id(p.mu) for p in posteriors.values()}) == len(posteriors), "two posteriors share one mean"
    lost = sorted(set(source) - set(posteriors) - set(left))
    assert not lost, f"neither converted nor left: {lost[:4]}"
    assert len(left) + len(posteriors) == len(source), "more parameters than posteriors and what was left"
    for name, parameter in left.items():
        assert torch.equal(parameter, source[name]), f"{name} changed"
    kl = float(kl_divergence(subject.bnn).detach())
    assert 0 <= kl < float("inf"), f"KL is {kl}"


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
    bad = [p for p, v in expected.items() if not _close(v, sampled.get(p)) and not identical(v, subject.outputs[p])]
    same = first_difference(expected, sampled)
    subject.result.facts["sample_bit_equal"] = same is None
    assert not bad, f"a plain copy with the held weights computes something else: {same}"


def _close(one: Tensor, other: Tensor | None) -> bool:
    if other is None or one.shape != other.shape:
        return False
    return identical(one, other) or distance(one, other) <= 1e-5 * scale(one)


def _attribute(model: nn.Module, name: str) -> Tensor:
    path, _, leaf = name.rpartition(".")
    value = getattr(model.get_submodule(path), leaf)
    return value.as_subclass(Tensor) if type(value) is not Tensor else value


def every_posterior_moves_the_output(subject: Subject) -> None:
    """With every other sigma 0, the noise of each posterior changes the output, or the source ignores the weight.

    The gradient with respect to rho at vanishing noise sees all posteriors in one pass; then as many as the budget
    allows are moved one by one, first those without a gradient.
    """
    posteriors, inputs = subject.posteriors, subject.example.inputs
    felt = _felt_by_gradient(subject)
    order = sorted(posteriors)
    random.Random(0).shuffle(order)
    order.sort(key=lambda name: name in felt)
    unmoved, tried, deadline = [], 0, time.monotonic() + subject.budget
    with _rho(subject.bnn, SILENT) as original, torch.no_grad():
        difference = first_difference(subject.outputs, run(subject.bnn, inputs))
        assert difference is None, f"the mean depends on sigma: {difference}"
        for name in order:
            if name in felt and time.monotonic() > deadline:
                break
            tried += 1
            posterior = posteriors[name]
            posterior.rho.data.copy_(original[id(posterior.rho)])
            owner = _owner(subject.bnn, name)
            if not _moves(subject, owner):
                posterior.rho.data.copy_(original[id(posterior.rho)] + 3.0)  # coarse outputs, saturated units
                if not _moves(subject, owner):
                    unmoved.append(name)
            posterior.rho.data.fill_(SILENT)
    ignored = [name for name in unmoved if not _source_reads(subject, name)]
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
    wrong = sorted(name for name in silent - set(facts["ignored_by_the_source"]) if _source_reads(subject, name))
    assert not wrong, f"check_noise calls silent what the source reads: {wrong[:4]}"


def _felt_by_gradient(subject: Subject) -> set[str]:
    """Names of the posteriors whose rho receives a gradient from the output at vanishing noise."""
    with _rho(subject.bnn, FAINT):
        seed_all(1)
        with sampling(subject.bnn, torch.Generator().manual_seed(2)):
            try:
                outputs = run(subject.bnn, subject.example.inputs, grad=True)
                loss = _loss(outputs)
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


def _source_reads(subject: Subject, name: str) -> bool:
    """Whether moving the weight in the source by twenty sigma changes its output by more than rounding does.

    Attention ignores the bias of its keys, for instance: it shifts all scores of a query alike.
    """
    parameter = dict(subject.source.named_parameters())[name]
    kept = parameter.detach().clone()
    noise = torch.randn(kept.shape, generator=torch.Generator().manual_seed(3))
    try:
        parameter.data.add_((20 * subject.posteriors[name].sigma().detach() * noise).to(kept.dtype))
        moved = run(subject.source, subject.example.inputs)
    finally:
        parameter.data.copy_(kept)
    return any(
        moved[path].shape != value.shape or distance(value, moved[path]) > 1e-5 * scale(value)
        for path, value in subject.outputs.items()
        if path in moved
    )


def train_mode_is_noisy(subject: Subject) -> None:
    """In train mode the weights' noise reaches the output: the same random state without it gives other numbers."""
    with _training(subject.bnn):
        noisy = run(subject.bnn, subject.train_inputs)
    with _rho(subject.bnn, SILENT), _training(subject.bnn):
        silent = run(subject.bnn, subject.train_inputs)
    assert list(noisy) == list(silent) or len(noisy) > 0
    assert first_difference(floating(noisy), floating(silent)) is not None, "no noise in train mode"
    for path, value in floating(noisy).items():
        if path in silent and bool(torch.isfinite(silent[path]).all()):
            assert bool(torch.isfinite(value).all()), f"{path} is not finite in train mode"


def gradients_arrive(subject: Subject) -> None:
    """Forward and backward in train mode: finite, on every mu and rho that the source has a gradient for."""
    wanted, moving = _source_gradients(subject)
    posteriors, missing, quiet = subject.posteriors, set(), set()
    plain = dict(subject.bnn.named_parameters())
    for seed in range(4):  # routing and sampling may leave a weight out by chance
        with _training(subject.bnn):
            outputs = run(subject.bnn, subject.train_inputs, seed=seed, grad=True)
            loss = _loss(outputs)
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


def _source_gradients(subject: Subject) -> tuple[set[str], set[str]]:
    """Names of the parameters that the source gives a gradient for, and of those where it is not zero."""
    with _training(subject.source):
        loss = _loss(run(subject.source, subject.train_inputs, grad=True))
        if loss is not None:
            loss.backward()
    named = {n: p.grad for n, p in subject.source.named_parameters() if p.grad is not None}
    assert all(bool(torch.isfinite(g).all()) for g in named.values()), "the source's own gradients are not finite"
    moving = {n for n, g in named.items() if bool((g != 0).any())}
    subject.source.zero_grad(set_to_none=True)
    run(subject.source, subject.example.inputs)
    return set(named), moving


def _loss(outputs: dict[str, Tensor]) -> Tensor | None:
    """A random projection of everything that carries a gradient."""
    terms = [value for value in floating(outputs).values() if value.requires_grad and value.numel()]
    if not terms:
        return None
    generator = torch.Generator().manual_seed(9)
    total = torch.zeros((), dtype=torch.float64)
    for value in terms:
        value = torch.view_as_real(value) if value.is_complex() else value
        weights = torch.randn(value.shape, generator=generator, dtype=torch.float32)
        finite = torch.isfinite(value)
        total = total + torch.where(finite, value.double() * weights, 0.0).mean()
    return total


def deepcopy_and_pickle_agree(subject: Subject) -> None:
    """A deepcopy computes the same with storage of its own; where the source pickles, so does the Bayesian model."""
    other = copy.deepcopy(subject.bnn)
    difference = first_difference(subject.outputs, run(other, subject.example.inputs))
    assert difference is None, f"deepcopy: {difference}"
    shared = {p.data_ptr() for p in other.parameters() if p.numel()} & {
        p.data_ptr() for p in subject.bnn.parameters() if p.numel()
    }
    assert not shared, "deepcopy shares storage"
    assert set(dict(named_posteriors(other))) == set(subject.posteriors), "deepcopy has other posteriors"
    del other
    if subject.result.facts["parameters"] > 30e6:
        return
    try:
        pickle.dumps(subject.source)
    except Exception as err:
        subject.result.facts["not_picklable"] = str(err)[:200]
        return
    stream = io.BytesIO()
    torch.save(subject.bnn, stream)
    stream.seek(0)
    other = torch.load(stream, weights_only=False)
    difference = first_difference(subject.outputs, run(other, subject.example.inputs))
    assert difference is None, f"torch.load: {difference}"


def checkpoints_load(subject: Subject) -> None:
    """The source's state dict and the Bayesian one load strictly into a Bayesian model with other weights."""
    stranger = copy.deepcopy(subject.source)
    with torch.no_grad():
        for parameter in stranger.parameters():
            parameter.mul_(0.5)
    stranger = convert.bayesify(stranger, inplace=True)
    rho = {name: p.rho.detach().clone() for name, p in named_posteriors(stranger)}
    stranger.load_state_dict(subject.source.state_dict(), strict=True)
    difference = first_difference(subject.outputs, run(stranger, subject.example.inputs))
    assert difference is None, f"original checkpoint: {difference}"
    for name, posterior in named_posteriors(stranger):
        assert torch.equal(posterior.rho, rho[name]), f"the original checkpoint changed rho of {name}"
        posterior.mu.data.mul_(0.7)
    stranger.load_state_dict(subject.bnn.state_dict(), strict=True)
    difference = first_difference(subject.outputs, run(stranger, subject.example.inputs))
    assert difference is None, f"state dict: {difference}"
    loaded = dict(named_posteriors(stranger))
    for name, posterior in subject.posteriors.items():
        assert torch.equal(posterior.rho, loaded[name].rho), f"the state dict lost rho of {name}"
    assert list(stranger.state_dict()) == list(subject.bnn.state_dict())


def way_back_is_exact(subject: Subject) -> None:
    """``to_deterministic`` gives the source again: output, keys, values, types, ties, flags."""
    back = convert.to_deterministic(subject.bnn)
    difference = first_difference(subject.outputs, run(back, subject.example.inputs))
    assert difference is None, difference
    Fingerprint(subject.source).compare(back, "way back", identity=False)
    assert first_difference(subject.outputs, run(subject.bnn, subject.example.inputs)) is None, "it changed its input"


def source_is_untouched(subject: Subject, before: Fingerprint) -> None:
    """Nothing of the source has changed since before the conversion."""
    before.compare(subject.source, "source", identity=True)
    difference = first_difference(subject.outputs, run(subject.source, subject.example.inputs))
    assert difference is None, difference


CHECKS: list[Callable[[Subject], None]] = [
    mean_is_bit_equal,
    posteriors_match_parameters,
    plan_accounts_for_everything,
    coverage_is_high,
    held_sample_is_used_everywhere,
    every_posterior_moves_the_output,
    check_noise_agrees,
    train_mode_is_noisy,
    gradients_arrive,
    deepcopy_and_pickle_agree,
    checkpoints_load,
    way_back_is_exact,
]


# -- what the checks are made of


class Fingerprint:
    """Everything a conversion must leave alone or bring back."""

    def __init__(self, model: nn.Module) -> None:
        self.types = {path: type(module) for path, module in model.named_modules(remove_duplicate=False)}
        self.flags = {path: module.training for path, module in model.named_modules()}
        self.hooks = {path: _hooks(module) for path, module in model.named_modules()}
        self.tensors = {name: t.detach().clone() for name, t in _tensors(model)}
        self.keys = list(model.state_dict())
        self.ties = _ties(model)
        self.identities = {name: id(t) for name, t in _tensors(model)}
        self.grads = {name: p.requires_grad for name, p in model.named_parameters(remove_duplicate=False)}
        self.attributes = {path: sorted(vars(module)) for path, module in model.named_modules()}

    def compare(self, model: nn.Module, verb: str, identity: bool) -> None:
        """Raise with the first thing that differs."""
        other = Fingerprint(model)
        types = [
            f"{p}: {t.__name__} -> {other.types.get(p)}" for p, t in self.types.items() if other.types.get(p) is not t
        ]
        assert not types, f"{verb}: types {types[:3]}"
        assert len(self.types) == len(other.types), f"{verb}: new modules {set(other.types) - set(self.types)}"
        assert self.keys == other.keys, f"{verb}: keys {sorted(set(self.keys) ^ set(other.keys))[:4]} or their order"
        assert list(self.tensors) == list(other.tensors), f"{verb}: names of parameters and buffers"
        for name, tensor in self.tensors.items():
            assert identical(tensor, other.tensors[name]), f"{verb}: values of {name}"
            assert tensor.dtype == other.tensors[name].dtype, f"{verb}: dtype of {name}"
        assert self.ties == other.ties, f"{verb}: ties"
        assert self.grads == other.grads, f"{verb}: requires_grad"
        assert self.flags == other.flags, f"{verb}: training flags"
        assert self.hooks == other.hooks, (
            f"{verb}: hooks {[p for p in self.hooks if self.hooks[p] != other.hooks.get(p)][:3]}"
        )
        extra = [
            f"{p}: {set(a) ^ set(other.attributes[p])}" for p, a in self.attributes.items() if a != other.attributes[p]
        ]
        assert not extra, f"{verb}: attributes {extra[:3]}"
        if identity:
            assert self.identities == other.identities, f"{verb}: other Parameter objects"


def _tensors(model: nn.Module) -> Iterator[tuple[str, Tensor]]:
    yield from model.named_parameters(remove_duplicate=False)
    yield from model.named_buffers(remove_duplicate=False)


def _ties(model: nn.Module) -> list[list[str]]:
    """Names that share one Parameter."""
    groups: dict[int, list[str]] = {}
    for name, parameter in model.named_parameters(remove_duplicate=False):
        groups.setdefault(id(parameter), []).append(name)
    return sorted(names for names in groups.values() if len(names) > 1)


def _hooks(module: nn.Module) -> list[int]:
    kinds = ("_forward_hooks", "_forward_pre_hooks", "_backward_hooks", "_backward_pre_hooks", "_state_dict_hooks")
    return [len(getattr(module, kind)) for kind in kinds]


@contextmanager
def _training(model: nn.Module) -> Iterator[None]:
    """Train mode, with buffers and flags put back afterwards."""
    flags = [(module, module.training, dict(module._buffers)) for module in model.modules()]
    values = [(buffer, buffer.detach().clone()) for buffer in model.buffers()]
    model.train()
    try:
        yield
    finally:
        with torch.no_grad():
            for buffer, value in values:
                buffer.copy_(value)
        for module, flag, buffers in flags:
            module.training = flag
            for name, buffer in buffers.items():
                if module._buffers[name] is not buffer and not isinstance(module, torch.jit.ScriptModule):
                    module._buffers[name] = buffer


@contextmanager
def _rho(bnn: nn.Module, value: float) -> Iterator[dict[int, Tensor]]:
    """Every rho at one value, restored afterwards; yields the original rhos by identity."""
    rhos = {id(p.rho): p.rho for _, p in named_posteriors(bnn)}
    kept = {key: rho.detach().clone() for key, rho in rhos.items()}
    for rho in rhos.values():
        rho.data.fill_(value)
    try:
        yield kept
    finally:
        for key, rho in rhos.items():
            rho.data.copy_(kept[key])


def _tally(reasons: Iterator[str]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for reason in reasons:
        counts[reason] = counts.get(reason, 0) + 1
    return counts
