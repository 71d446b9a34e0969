"""include and exclude in every form."""

from __future__ import annotations

import copy
import re

import pytest
import torch
from torch import nn

from bensemble import InvalidTypeError, InvalidValueError, named_posteriors
from bensemble.errors import ConversionError
from convert import bayesify, plan

from .networks import Block, TextModel

BLOCKS = {f"blocks.{i}.{part}.{name}" for i in range(2) for part in ("query", "value") for name in ("weight", "bias")}
HEAD = {"head.weight", "head.bias"}
PROJECTION = {"projection.weight", "projection.bias"}
DEFAULT = {"mix"} | BLOCKS | HEAD


@pytest.fixture
def model() -> TextModel:
    return TextModel()


def chosen(model: nn.Module, **selection: object) -> set[str]:
    planned = {row.name for row in plan(model, **selection).rows if row.is_bayesian}
    done = {name for name, _ in named_posteriors(bayesify(model, **selection))}
    assert planned == done
    return planned


def part(number: int, name: str) -> set[str]:
    return {f"blocks.{number}.{name}.weight", f"blocks.{number}.{name}.bias"}


INCLUDED = {
    "nothing_said": (None, DEFAULT),
    "module": ("head", HEAD),
    "everything_below": ("blocks.1", part(1, "query") | part(1, "value")),
    "one_parameter": ("blocks.1.query.weight", {"blocks.1.query.weight"}),
    "raw_parameter": ("mix", {"mix"}),
    "glob_on_modules": ("*.query", part(0, "query") | part(1, "query")),
    "glob_on_parameters": ("*.weight", {name for name in DEFAULT if name.endswith(".weight")}),
    "glob_with_a_class": ("blocks.[1-9].*", part(1, "query") | part(1, "value")),
    "glob_above": ("block*", BLOCKS),
    "type": (nn.Linear, BLOCKS | HEAD | PROJECTION),
    "type_of_a_container": (Block, BLOCKS),
    "callable": (lambda name, module: "value" in name, part(0, "value") | part(1, "value")),
    "callable_on_modules": (lambda name, module: isinstance(module, nn.Linear), BLOCKS | HEAD),
    "sequence": (["head", "*.0.query"], HEAD | part(0, "query")),
    "tuple_of_kinds": (("mix", Block), {"mix"} | BLOCKS),
    "embedding_by_name": ("embedding", {"embedding.weight"}),
    "embedding_by_type": (nn.Embedding, {"embedding.weight"}),
    "frozen_by_name": ("projection", PROJECTION),
    "frozen_parameter_by_name": ("projection.weight", {"projection.weight"}),
    "table_by_name": ("positions", {"positions"}),
    "norm_by_name": ("blocks.0.norm", {"blocks.0.norm.weight", "blocks.0.norm.bias"}),
    "default_and_an_embedding": (["*", "embedding"], DEFAULT | {"embedding.weight"}),
}


@pytest.mark.parametrize(("include", "expected"), INCLUDED.values(), ids=INCLUDED)
def test_include(model: TextModel, include: object, expected: set[str]) -> None:
    assert chosen(model, include=include) == expected


def test_include_by_object(model: TextModel) -> None:
    assert chosen(model, include=model.head) == HEAD
    assert chosen(model, include=model.blocks[0]) == part(0, "query") | part(0, "value")
    assert chosen(model, include=model.embedding) == {"embedding.weight"}
    assert chosen(model, include=model.projection) == PROJECTION


EXCLUDED = {
    "module": ("blocks", {"mix"} | HEAD),
    "parameter": ("head.bias", DEFAULT - {"head.bias"}),
    "weight_takes_its_bias_along": ("head.weight", DEFAULT - HEAD),
    "glob": ("*.query", DEFAULT - part(0, "query") - part(1, "query")),
    "type": (nn.Linear, {"mix"}),
    "callable": (lambda name, module: name.startswith("blocks"), {"mix"} | HEAD),
    "sequence": (["mix", "head"], BLOCKS),
}


@pytest.mark.parametrize(("exclude", "expected"), EXCLUDED.values(), ids=EXCLUDED)
def test_exclude(model: TextModel, exclude: object, expected: set[str]) -> None:
    assert chosen(model, exclude=exclude) == expected


def test_exclude_wins(model: TextModel) -> None:
    assert chosen(model, include="blocks", exclude="*.value") == part(0, "query") | part(1, "query")
    assert chosen(model, include=["head", "mix"], exclude=model.head) == {"mix"}
    assert chosen(model, include=["embedding", "head"], exclude=nn.Embedding) == HEAD


def test_a_glob_or_a_base_class_does_not_override_a_default(model: TextModel) -> None:
    assert chosen(model, include="*") == DEFAULT
    assert chosen(model, include=nn.Module) == DEFAULT
    assert chosen(model, include=lambda name, module: True) == DEFAULT


def test_named_frozen_layers_stay_frozen(model: TextModel) -> None:
    bnn = bayesify(model, include="projection")
    assert not any(parameter.requires_grad for parameter in bnn.projection.parameters())
    assert bnn.head.weight.requires_grad


def test_a_selector_for_a_module_under_two_names_takes_both() -> None:
    model = nn.Module()
    model.one = nn.Linear(2, 2)
    model.two = model.one
    model.three = nn.Linear(2, 2)
    assert chosen(model, include="two") == {"one.weight", "one.bias"}
    assert chosen(model, exclude="two") == {"three.weight", "three.bias"}


def test_a_tie_is_excluded_by_either_name() -> None:
    model = nn.Module()
    model.one, model.two = nn.Linear(2, 2, bias=False), nn.Linear(2, 2, bias=False)
    model.two.weight = model.one.weight
    model.three = nn.Linear(2, 2, bias=False)
    assert chosen(model, exclude="two") == {"three.weight"}
    assert chosen(model, include="two") == {"one.weight"}


NO_MATCH = {
    "typing_error": ("heda", r"include 'heda' matches nothing in the model; nearest names: head"),
    "old_path": ("blocks.0.key", r"include 'blocks.0.key' matches nothing .* nearest names: blocks\.0"),
    "glob": ("*.keys", r"include '\*\.keys' matches nothing"),
    "type": (nn.Conv2d, r"include Conv2d matches no module; the model holds .*Linear"),
    "callable": (lambda name, module: False, r"include <function .* selects nothing in the model"),
    "among_others": (["head", "tail"], r"include 'tail' matches nothing"),
}


@pytest.mark.parametrize(("selector", "message"), NO_MATCH.values(), ids=NO_MATCH)
@pytest.mark.parametrize("argument", ["include", "exclude"])
@pytest.mark.parametrize("function", [plan, bayesify], ids=["plan", "bayesify"])
def test_a_selector_that_matches_nothing_is_refused(
    model: TextModel, selector: object, message: str, argument: str, function
) -> None:
    before = copy.deepcopy(model.state_dict())
    with pytest.raises(InvalidValueError, match=f"{function.__name__}: " + message.replace("include", argument)):
        function(model, **{argument: selector})
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())


def test_a_module_of_another_model_is_refused(model: TextModel) -> None:
    message = "bayesify: include got a Linear that is no part of the model; pass a module object of the model itself"
    with pytest.raises(InvalidValueError, match=re.escape(message)):
        bayesify(model, include=copy.deepcopy(model).head)


@pytest.mark.parametrize("selector", [3, 2.5, int, [["head"], 3]], ids=str)
def test_a_selector_of_another_kind_is_refused(model: TextModel, selector: object) -> None:
    with pytest.raises(InvalidTypeError, match=r"plan: include takes names, globs, module types, .* got"):
        plan(model, include=selector)


def test_selecting_only_what_cannot_convert_says_why(model: TextModel) -> None:
    with pytest.raises(ConversionError, match=r"nothing to convert in TextModel: .*a norm"):
        bayesify(model, include="*.norm")
    with pytest.raises(ConversionError, match=r"nothing to convert in TextModel: not included"):
        bayesify(model, include=[])
