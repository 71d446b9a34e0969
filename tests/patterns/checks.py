"""What a pattern has to pass beyond the checks of the zoo, and the loop that runs all of them."""

from __future__ import annotations

import copy
import pickle
from collections.abc import Callable, Iterator
from contextlib import contextmanager

import torch
from torch import Tensor, nn
from zoo.checks import (
    CHECKS,
    Fingerprint,
    Subject,
    conversion_succeeds,
    coverage_is_high,
    gradients_arrive,
    prepare,
    source_is_sound,
    source_is_untouched,
)
from zoo.checks.gradients import source_gradients
from zoo.checks.noise import source_reads
from zoo.forward import first_difference, floating, run
from zoo.result import Result

import convert
from bensemble import sampling
from bensemble.posteriors import named_posteriors

from .table import Pattern

#: softplus of it is 2e-9: far below what float32 resolves beside any weight here.
SILENT = -20.0


def check_pattern(pattern: Pattern) -> Result:
    """Run every check on a pattern; the result names those that failed."""
    result = Result(f"patterns/{pattern.name}", "patterns")
    subject = prepare(pattern.entry, result, budget=60.0)
    source_is_sound(subject)
    before = Fingerprint(subject.source)
    # Gradients come last: hooks leave tensors with a history behind, which torch refuses to copy. Coverage is what
    # stays_are_as_listed says to the letter.
    middle = [check for check in CHECKS if check not in (coverage_is_high, gradients_arrive)]
    for check in (conversion_succeeds, *middle, *OWN_CHECKS, gradients_arrive):
        name = check.__name__
        try:
            check(subject)
        except Exception as err:
            failure = f"{type(err).__name__}: {err}"
            (result.excused if name in pattern.known else result.failed)[name] = failure
            if not hasattr(subject, "bnn"):
                break
        else:
            if name in pattern.known:
                result.failed[name] = f"passes, but is listed with: {pattern.known[name]}"
    before.compare(subject.source, "source", identity=True)
    source_is_untouched(subject, before)
    stays_are_as_listed(pattern, subject)
    return result


def stays_are_as_listed(pattern: Pattern, subject: Subject) -> None:
    """Exactly the listed parameters of two or more dimensions stay, each with a reason, and the silent are listed."""
    for inputs, expected in ((subject.example.inputs, pattern.stays), (None, pattern.stays_blind)):
        rows = convert.plan(subject.source, example_inputs=inputs).rows
        wide = {row.name for row in rows if sum(size > 1 for size in row.shape) > 1}
        stays = {row.name for row in rows if not row.is_bayesian} & wide
        assert stays == (pattern.stays if expected is None else expected), f"inputs {inputs is not None}: {stays}"
        assert all(row.reason for row in rows if not row.is_bayesian)
    assert set(subject.result.facts.get("ignored_by_the_source", [])) == set(pattern.silent)


def converts_with_example_inputs(subject: Subject) -> None:
    """A probe forward leads to a model that computes the same, and leaves the random state alone."""
    state = torch.random.get_rng_state()
    bnn = convert.bayesify(subject.source, example_inputs=subject.example.inputs)
    assert torch.equal(state, torch.random.get_rng_state()), "the random state moved"
    difference = first_difference(subject.outputs, run(bnn, subject.example.inputs))
    assert difference is None, difference


def every_posterior_is_noisy_in_train_mode(subject: Subject) -> None:
    """Each posterior by itself, all other sigmas tiny, changes the output of a forward in train mode.

    It is tried a few times: dropout draws other masks than in the source, and under some of them a unit is dead.
    """
    bnn = copy.deepcopy(subject.bnn).train()
    posteriors = dict(named_posteriors(bnn))
    kept = {name: p.rho.detach().clone() for name, p in posteriors.items()}
    buffers = [(buffer, buffer.clone()) for buffer in bnn.buffers()]

    def forward(seed: int) -> dict[str, Tensor]:
        for buffer, value in buffers:
            buffer.data.copy_(value)
        return floating(run(bnn, subject.train_inputs, seed=seed))

    for posterior in posteriors.values():
        posterior.rho.data.fill_(SILENT)
    silent, quiet = [forward(seed) for seed in range(3)], []
    for name, posterior in posteriors.items():
        louder = (posterior.rho.data.copy_(kept[name] + more) for more in (1.0, 5.0))  # half precision rounds much away
        tries = ((seed, still) for _ in louder for seed, still in enumerate(silent))
        if all(first_difference(still, forward(seed)) is None for seed, still in tries):
            quiet.append(name)
        posterior.rho.data.fill_(SILENT)
    lost = set(quiet) - set(subject.result.facts.get("ignored_by_the_source", []))
    if lost:  # units that are dead in training have no gradient; batch norms ignore the bias before them
        lost = {name for name in lost & source_gradients(subject)[1] if source_reads(subject, name, train=True)}
    assert not lost, f"no noise in train mode: {sorted(lost)}"


def in_place_keeps_every_object(subject: Subject) -> None:
    """There and back in place: the same modules and Parameters, with the hooks on them."""
    model = convert.to_deterministic(subject.bnn)
    parameters = dict(model.named_parameters())
    called: list[str] = []
    for name, parameter in parameters.items():
        if parameter.requires_grad and parameter.is_leaf:
            parameter.register_hook(lambda grad, name=name: called.append(name))
    before = Fingerprint(model)
    modules = [id(module) for module in model.modules()]
    assert convert.bayesify(model, inplace=True) is model
    assert [id(module) for module in model.modules()] == modules
    assert all(p.mu is parameters[name] for name, p in named_posteriors(model))
    outputs = run(model, subject.example.inputs, grad=True)
    total = sum(value.abs().sum() for value in outputs.values() if value.requires_grad)
    if isinstance(total, Tensor):
        total.backward()
        assert called, "the hooks on the Parameters are gone"
        model.zero_grad(set_to_none=True)
    run(model, subject.example.inputs)
    assert convert.to_deterministic(model, inplace=True) is model
    before.compare(model, "in place", identity=True)


def checkpoint_is_assigned(subject: Subject) -> None:
    """The source's state dict loads with ``strict=True, assign=True``, and ties survive it as they do in the source."""
    bnn, plain = copy.deepcopy(subject.bnn), copy.deepcopy(subject.source)
    for model in (plain, bnn):
        with torch.no_grad():
            for parameter in dict(model.named_parameters()).values():
                parameter.mul_(0.5)
        model.load_state_dict(copy.deepcopy(subject.source.state_dict()), strict=True, assign=True)
    expected = run(plain, subject.example.inputs)
    difference = first_difference(expected, run(bnn, subject.example.inputs))
    assert difference is None, difference
    with sampling(bnn), torch.no_grad():
        assert first_difference(expected, run(bnn, subject.example.inputs)) is not None, "no noise after assign"


def checkpoint_loads_below_a_prefix(subject: Subject) -> None:
    """The source's state dict loads with ``strict=True`` where the model is a part, as it is of every wrapper."""
    weights = dict(subject.source.named_parameters())
    for path in ("module", "_orig_mod", "trunk.0.net"):
        whole, bnn = nn.Module(), copy.deepcopy(subject.bnn)
        *above, last = path.split(".")
        for depth, name in enumerate(above):
            whole.get_submodule(".".join(above[:depth])).add_module(name, nn.Module())
        whole.get_submodule(".".join(above)).add_module(last, bnn)
        with torch.no_grad():
            for parameter in bnn.parameters():
                parameter.mul_(0.5)
        state = {f"{path}.{key}": value for key, value in subject.source.state_dict().items()}
        whole.load_state_dict(state, strict=True)
        for name, posterior in named_posteriors(bnn):
            assert torch.equal(posterior.mu, weights[name]), f"{name} below {path}"
            assert torch.equal(posterior.rho * 2.0, subject.posteriors[name].rho), f"rho of {name} below {path}"


def copies_inside_contexts_are_ordinary(subject: Subject) -> None:
    """A deepcopy or pickle taken in train mode inside ``sampling`` is the mean model in eval, and samples again."""
    with _train_mode(subject.bnn), sampling(subject.bnn):
        others = [copy.deepcopy(subject.bnn)]
        if "not_picklable" not in subject.result.facts:
            others.append(pickle.loads(pickle.dumps(subject.bnn)))
    for other in others:
        difference = first_difference(subject.outputs, run(other.eval(), subject.example.inputs))
        assert difference is None, difference
        with sampling(other, torch.Generator().manual_seed(0)):
            sampled = run(other, subject.example.inputs)
        with sampling(subject.bnn, torch.Generator().manual_seed(0)):
            difference = first_difference(sampled, run(subject.bnn, subject.example.inputs))
        assert difference is None, f"the sample of a copy: {difference}"


def pruning_keeps_outputs_finite(subject: Subject) -> None:
    """Half of the prunable weights at zero, wherever they are: finite outputs, and zeros in those weights only."""
    pruned = convert.to_deterministic(subject.bnn, sparsity=0.5)
    for path, value in floating(run(pruned, subject.example.inputs)).items():
        assert bool(torch.isfinite(value).all()), f"{path} is not finite"
    source, now = dict(subject.source.named_parameters()), dict(pruned.named_parameters())
    for name, posterior in named_posteriors(subject.bnn):
        if not posterior.prunable:
            assert torch.equal(source[name], now[name]), f"{name} is not prunable, but changed"


@contextmanager
def _train_mode(model: nn.Module) -> Iterator[None]:
    flags = [(module, module.training) for module in model.modules()]
    model.train()
    try:
        yield
    finally:
        for module, flag in flags:
            module.training = flag


OWN_CHECKS: list[Callable[[Subject], None]] = [
    converts_with_example_inputs,
    every_posterior_is_noisy_in_train_mode,
    in_place_keeps_every_object,
    checkpoint_is_assigned,
    checkpoint_loads_below_a_prefix,
    copies_inside_contexts_are_ordinary,
    pruning_keeps_outputs_finite,
]
