"""A plan is executed as it is, as it was edited, or not at all."""

from __future__ import annotations

import copy
import dataclasses

import pytest
from patterns.tied import LanguageModel
from torch import nn

from bensemble import BayesianLinear, ConversionError, InvalidTypeError, named_posteriors
from convert import bayesify, plan

from .networks import TextModel, small, tokens


def test_a_plan_is_executed_exactly() -> None:
    model = TextModel()
    bnn = bayesify(model, plan=plan(model, include="blocks", exclude="*.value"))
    assert {name.rpartition(".")[0] for name, _ in named_posteriors(bnn)} == {"blocks.0.query", "blocks.1.query"}


def test_an_edited_plan_is_executed_as_edited() -> None:
    model = small()
    made = plan(model)
    edited = {
        "0.weight": {"tier": "deterministic"},
        "0.bias": {"tier": "deterministic"},
        "3.weight": {"tier": "sampled"},
    }
    edited["3.bias"] = {"tier": "deterministic"}
    changed = dataclasses.replace(
        made, rows=tuple(dataclasses.replace(row, **edited.get(row.name, {})) for row in made.rows)
    )
    bnn = bayesify(model, plan=changed)
    assert [name for name, _ in named_posteriors(bnn)] == ["3.weight"]
    assert not isinstance(bnn[3], BayesianLinear)
    assert type(bnn[0]) is nn.Conv2d


def test_a_plan_works_on_a_copy_and_after_json_free_storage() -> None:
    model = TextModel()
    made = plan(model)
    assert bayesify(copy.deepcopy(model), plan=copy.deepcopy(made)).head.w_mu.shape == (3, 4)


@pytest.mark.parametrize(
    "argument",
    [{"include": "head"}, {"exclude": "head"}, {"example_inputs": tokens()}],
    ids=lambda given: next(iter(given)),
)
def test_a_plan_excludes_what_it_was_made_from(argument: dict) -> None:
    model = TextModel()
    with pytest.raises(InvalidTypeError, match="a plan excludes include, exclude, example_inputs and"):
        bayesify(model, plan=plan(model), **argument)


def test_a_plan_has_to_be_a_plan() -> None:
    with pytest.raises(InvalidTypeError, match=r"bayesify: plan must be a ConversionPlan, got str"):
        bayesify(small(), plan="all")  # type: ignore[arg-type]


def retie(model: LanguageModel) -> nn.Module:
    model.head.weight = nn.Parameter(model.head.weight.detach().clone())
    return model


def linear(outputs: int = 3, bias: bool = True) -> nn.Module:
    return nn.Sequential(nn.Linear(4, outputs, bias=bias))


OTHERS = {
    "shape": (linear, lambda: linear(2), r"'0.weight' of shape \(3, 4\), got '0.weight' of shape \(2, 4\)"),
    "missing": (linear, lambda: linear(bias=False), r"'0.bias' of shape \(3,\), got no '0.bias'"),
    "extra": (lambda: linear(bias=False), linear, r"the plan has no '0.bias', got '0.bias' of shape"),
    "tie": (LanguageModel, lambda: retie(LanguageModel()), r"also called head.weight, got 'embedding.weight' of shape"),
}


@pytest.mark.parametrize(("planned", "given", "message"), OTHERS.values(), ids=OTHERS)
def test_a_plan_of_another_model_is_refused(planned, given, message: str) -> None:
    model = given()
    kinds = [type(module) for module in model.modules()]
    with pytest.raises(ConversionError, match=r"(?s)bayesify: .*" + message):
        bayesify(model, plan=plan(planned()), inplace=True)
    assert [type(module) for module in model.modules()] == kinds
