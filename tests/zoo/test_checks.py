"""Each check of the zoo notices the fault that it is there for, and passes without it."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional as F

import convert
from bensemble import BayesianLinear

from . import checks
from .checks import conversion, returning, source
from .coverage import measure_coverage
from .entries import Entry, Example
from .fingerprint import Fingerprint
from .perturbation import enliven
from .result import Result
from .spread import drawn_outputs, spread_agrees
from .subject import Subject


def tied() -> nn.Module:
    model = nn.Sequential(nn.Embedding(9, 6), nn.Linear(6, 6), nn.Tanh(), nn.Linear(6, 9, bias=False))
    model[3].weight = model[0].weight
    return model


def tied_inputs() -> Tensor:
    return torch.randint(9, (2, 4))


ENTRY = Entry("torch", "tied", "tied", lambda: Example(tied(), tied_inputs()))


def bypass(model: nn.Module) -> None:
    """A layer that computes with its mean whatever is asked."""
    layer = model[1]
    layer.forward = lambda x: F.linear(x, layer.w_mu, layer.b_mu)


def bypass_in_train(model: nn.Module) -> None:
    table, first, last = model[0], model[1], model[3]
    table.forward = _unless_training(table, lambda x: F.embedding(x, table.weight_mu))
    first.forward = _unless_training(first, lambda x: F.linear(x, first.w_mu, first.b_mu))
    last.forward = _unless_training(last, lambda x: F.linear(x, last.w_mu))


def _unless_training(layer: nn.Module, mean: Callable[[Tensor], Tensor]) -> Callable[[Tensor], Tensor]:
    usual = layer.forward
    return lambda x: mean(x) if layer.training else usual(x)


def move_mean(model: nn.Module) -> None:
    model[1].w_mu.data[0, 0] += 1e-3


def freeze_rho(model: nn.Module) -> None:
    model[1].w_rho.requires_grad_(False)


def refuse_to_load(model: nn.Module) -> None:
    model.load_state_dict = lambda *args, **kwargs: None


def redraw(model: nn.Module) -> None:
    """A layer that forgets the held sample."""
    layer = model[1]
    layer.forward = lambda x: F.linear(x, layer.w_mu + 0.1 * torch.randn_like(layer.w_mu), layer.b_mu)


FAULTS: list[tuple[Callable[[nn.Module], None], str]] = [
    (bypass, "held_sample_is_used_everywhere"),
    (bypass, "every_posterior_moves_the_output"),
    (bypass, "gradients_arrive"),
    (bypass_in_train, "train_mode_is_noisy"),
    (move_mean, "mean_is_bit_equal"),
    (move_mean, "posteriors_match_parameters"),
    (move_mean, "way_back_is_exact"),
    (freeze_rho, "posteriors_match_parameters"),
    (refuse_to_load, "checkpoints_load"),
    (redraw, "held_sample_is_used_everywhere"),
]


@pytest.mark.parametrize(("fault", "check"), FAULTS, ids=[f"{f.__name__}-{c}" for f, c in FAULTS])
def test_fault_is_noticed(fault: Callable[[nn.Module], None], check: str, monkeypatch: pytest.MonkeyPatch) -> None:
    usual = convert.bayesify

    def faulty(model: nn.Module, **options: Any) -> nn.Module:
        bnn = usual(model, **options)
        fault(bnn)
        return bnn

    monkeypatch.setattr(convert, "bayesify", faulty)
    result = Result(ENTRY.key, ENTRY.family)
    checks.check_entry(ENTRY, result, budget=1.0)
    assert check in result.failed, result


def test_without_fault_everything_passes() -> None:
    result = Result(ENTRY.key, ENTRY.family)
    checks.check_entry(ENTRY, result, budget=1.0)
    assert result.ok, result.failed
    assert {check.__name__ for check in checks.CHECKS} < set(result.passed)


def test_shared_deepcopy_is_noticed() -> None:
    subject = _subject()
    subject.bnn.__class__ = type("Shared", (type(subject.bnn),), {"__deepcopy__": lambda self, memo: self})
    with pytest.raises(AssertionError, match="shares storage"):
        returning.deepcopy_and_pickle_agree(subject)


def test_changed_source_is_noticed() -> None:
    subject = _subject()
    before = Fingerprint(subject.source)
    returning.source_is_untouched(subject, before)
    subject.source[1].register_forward_hook(lambda *args: None)
    with pytest.raises(AssertionError, match="hooks"):
        returning.source_is_untouched(subject, before)


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda m: m.__setitem__(2, nn.ReLU()), "types"),
        (lambda m: setattr(m[3], "weight", nn.Parameter(m[3].weight.clone())), "ties"),
        (lambda m: m[1].weight.requires_grad_(False), "requires_grad"),
        (lambda m: m[1].weight.data.mul_(2), "values of"),
        (lambda m: m[1].train(), "training flags"),
        (lambda m: setattr(m[1], "spare", 1), "attributes"),
    ],
)
def test_fingerprint_sees(change: Callable[[Any], object], match: str) -> None:
    model = tied().eval()
    before = Fingerprint(model)
    before.compare(copy.deepcopy(model), "copy", identity=False)
    change(model)
    with pytest.raises(AssertionError, match=match):
        before.compare(model, "changed", identity=False)


def test_missing_plan_row_and_wrong_tier_are_noticed() -> None:
    subject = _subject()
    subject.bnn = convert.bayesify(subject.source, exclude="1")
    with pytest.raises(AssertionError, match="plan and model differ"):
        conversion.plan_accounts_for_everything(subject)
    with pytest.raises(AssertionError, match="left out"):
        conversion.coverage_is_high(subject)


def test_coverage_counts_by_the_definition() -> None:
    model = nn.Module()
    model.table, model.norm, model.head = nn.Embedding(5, 4), nn.LayerNorm((2, 3)), nn.Linear(4, 100)
    model.position, model.mixer = nn.Parameter(torch.zeros(1, 3, 2)), nn.Parameter(torch.zeros(2, 7))
    coverage = measure_coverage(model, {"head.weight", "head.bias"})
    assert (coverage.bayesian, coverage.eligible, coverage.exempt) == (400, 414, {"position": 6})
    assert coverage.left_out == {"mixer": 14}
    model.position = nn.Parameter(torch.zeros(1, 300, 2))
    assert measure_coverage(model, {"head.weight"}).left_out == {"position": 600, "mixer": 14}


def test_enliven_leaves_no_constant_and_calibrates_norms() -> None:
    model = nn.Sequential(nn.Conv2d(2, 4, 1), nn.BatchNorm2d(4), nn.Conv2d(4, 3, 1)).eval()
    nn.init.zeros_(model[2].weight)
    x = 5 + torch.randn(8, 2, 4, 4)
    enliven(model, lambda: model(x))
    for name, parameter in model.named_parameters():
        assert parameter.unique().numel() == parameter.numel(), name
    centred = model[1](model[0](x)).detach().mean(dim=(0, 2, 3))
    assert float(centred.abs().max()) < 1.5
    assert not any(module.training for module in model.modules())


@pytest.mark.long
def test_wrong_sigma_is_seen_in_the_spread() -> None:
    subject = _subject()
    drawn = drawn_outputs(subject, 2000)
    spread_agrees(subject, 2000, drawn=drawn)
    with pytest.raises(AssertionError, match="variance"):
        spread_agrees(subject, 2000, factor=1.1, drawn=drawn)
    with pytest.raises(AssertionError, match="variance"):
        spread_agrees(subject, 2000, factor=0.9, drawn=drawn)


def _subject() -> Subject:
    subject = checks.prepare(ENTRY, Result(ENTRY.key, ENTRY.family), budget=1.0)
    source.source_is_sound(subject)
    conversion.conversion_succeeds(subject)
    assert isinstance(subject.bnn[1], BayesianLinear)
    return subject
