"""What a plan says of every parameter, where it knows it from, and how it prints."""

from __future__ import annotations

import copy
import dataclasses
import json
import random

import pytest
import torch
from patterns.architectures import SmallResNet
from patterns.fused import FunctionalAttention
from patterns.tied import LanguageModel
from torch import Tensor, nn

from bensemble import InvalidValueError, named_posteriors
from convert import ConversionPlan, bayesify, plan

from .networks import TextModel, small, tokens


class DataDependent(nn.Module):
    """torch.fx cannot trace it; one layer runs for large inputs only."""

    def __init__(self) -> None:
        super().__init__()
        self.one, self.two = nn.Linear(4, 4), nn.Linear(4, 4)
        self.table, self.matrix = nn.Parameter(torch.randn(3, 4)), nn.Parameter(torch.randn(4, 4))

    def forward(self, x: Tensor) -> Tensor:
        x = self.one(x) + self.table
        return self.two(x) if float(x.detach().abs().max()) > 1e6 else x @ self.matrix


def rows(made: ConversionPlan) -> dict[str, object]:
    return {row.name: row for row in made.rows}


def test_every_parameter_has_a_row_in_the_order_of_the_model() -> None:
    model = TextModel()
    made = plan(model)
    assert [row.name for row in made.rows] == [name for name, _ in model.named_parameters()]
    assert [row.shape for row in made.rows] == [tuple(p.shape) for p in model.parameters()]
    assert made.summary == "TextModel: 111 of 203 parameters (54.7 %) become Bayesian, in 11 posteriors."


def test_tiers_and_reasons() -> None:
    found = {name: (row.tier, row.reason) for name, row in rows(plan(TextModel())).items()}
    assert found["head.weight"] == ("local", "")
    assert found["mix"] == ("sampled", "")
    assert found["positions"] == ("deterministic", "reaches add, no linear operation")
    assert found["embedding.weight"] == ("deterministic", "an embedding")
    assert found["projection.bias"] == ("deterministic", "frozen; name it in include to convert it")
    assert found["blocks.1.norm.weight"] == ("deterministic", "a norm")


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_other_reasons() -> None:
    model = nn.Module()
    model.integers = nn.Parameter(torch.ones(2, 2, dtype=torch.int64), requires_grad=False)
    model.empty = nn.Parameter(torch.zeros(0, 3))
    model.row = nn.Parameter(torch.zeros(1, 3))
    model.vector = nn.Parameter(torch.zeros(3))
    model.script = torch.jit.script(nn.Linear(2, 2))
    model.norm = nn.LayerNorm(3)
    model.head = nn.Linear(2, 2)
    reasons = {name: row.reason for name, row in rows(plan(model, exclude="head.weight")).items()}
    assert reasons == {
        "integers": "holds torch.int64, not floating point numbers",
        "empty": "has no elements",
        "row": "a vector in disguise",
        "vector": "a vector",
        "script.weight": "compiled by TorchScript",
        "script.bias": "compiled by TorchScript",
        "norm.weight": "a norm",
        "norm.bias": "a norm",
        "head.weight": "excluded",
        "head.bias": "the weight of its layer stays deterministic",
    }


def test_aliases_are_named_and_ties_counted_once() -> None:
    made = plan(LanguageModel())
    row = rows(made)["embedding.weight"]
    assert (row.aliases, row.tier, row.calls, row.reason, row.prunable) == (("head.weight",), "local", 2, "tied", False)
    assert made.summary.endswith("in 3 posteriors.")


def test_calls_and_hidden_layers() -> None:
    layer = nn.TransformerEncoderLayer(4, 2, 8, batch_first=True)
    found = rows(plan(layer, example_inputs=torch.randn(2, 3, 4)))
    assert found["self_attn.in_proj_weight"].tier == "sampled"
    traced = rows(plan(nn.Sequential(layer)))
    assert traced["0.linear1.weight"].calls == 0
    assert traced["0.linear1.weight"].reason == "used inside 0"
    bag = rows(plan(FunctionalAttention(), example_inputs=torch.randn(5, 2, 8)))
    assert bag["q.weight"].calls == 0
    assert bag["q.weight"].reason == "read without a call of its layer"
    assert bag["q.weight"].operations == ("multi_head_attention_forward",)


@pytest.mark.parametrize("informed", [False, True])
def test_a_layer_called_in_one_mode_only_counts_as_called(informed: bool) -> None:
    class Heads(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.body, self.head, self.auxiliary = nn.Linear(4, 4), nn.Linear(4, 2), nn.Linear(4, 2)

        def forward(self, x: Tensor) -> Tensor:
            x = self.body(x)
            return self.auxiliary(x) if self.training else self.head(x)

    model = Heads()
    made = plan(model, example_inputs=torch.randn(2, 4) if informed else None)
    assert {name: row.calls for name, row in rows(made).items() if name.endswith("weight")} == {
        "body.weight": 1,
        "head.weight": 1,
        "auxiliary.weight": 1,
    }
    assert model.training


def test_without_knowledge_shapes_and_names_decide() -> None:
    made = plan(DataDependent())
    assert made.source == "unknown"
    assert "pass example_inputs" in str(made)
    found = rows(made)
    assert found["one.weight"].calls is None
    assert (
        found["table"].reason
        == "named like a table or token; name it in include, or pass example_inputs, to convert it"
    )
    assert (found["matrix"].tier, found["two.weight"].tier) == ("sampled", "local")
    assert not found["matrix"].prunable


def test_a_probe_sees_what_a_trace_cannot() -> None:
    made = plan(DataDependent(), example_inputs=torch.randn(2, 3, 4))
    assert made.source == "probe"
    found = rows(made)
    assert found["table"].reason == "reaches add, no linear operation"
    assert (found["matrix"].tier, found["matrix"].prunable) == ("sampled", True)
    assert found["two.weight"].reason.startswith("not reached by these example inputs; name it in include")


class Tasks(nn.Module):
    """One head for each task; experts, of which each example takes one."""

    def __init__(self) -> None:
        super().__init__()
        self.body, self.heads = nn.Linear(5, 8), nn.ModuleDict({"a": nn.Linear(8, 3), "b": nn.Linear(8, 4)})
        self.experts, self.never = nn.ModuleList(nn.Linear(8, 8) for _ in range(2)), nn.Embedding(6, 8)

    def forward(self, x: Tensor, task: str = "a") -> Tensor:
        hidden = torch.relu(self.body(x))
        return self.heads[task](self.experts[int(float(hidden.detach().sum()) > 1e6)](hidden))


@pytest.mark.parametrize(
    ("include", "more"),
    [
        (None, []),
        (nn.Linear, []),
        (["body", "heads"], ["heads.b.weight", "heads.b.bias"]),
        (["*.b.weight"], ["heads.b.weight"]),
        (["body", "experts.1.weight"], ["experts.1.weight"]),
        (["never"], ["never.weight"]),
    ],
)
def test_what_example_inputs_do_not_reach_becomes_bayesian_where_it_is_named(include: object, more: list[str]) -> None:
    model, inputs = Tasks(), (torch.randn(4, 5), "a")
    found = rows(plan(model, include=include, example_inputs=inputs))
    left = {"heads.b.weight", "heads.b.bias", "experts.1.weight", "experts.1.bias"} - set(more)
    assert all(found[name].tier != "deterministic" for name in more)
    assert all(found[name].tier == "deterministic" for name in left)
    if include is None:
        assert all(found[name].reason.startswith("not reached by these example inputs; name it in") for name in left)
    names = {name for name, _ in named_posteriors(bayesify(model, include=include, example_inputs=inputs))}
    assert names >= set(more)
    assert not names & left


def test_what_a_trace_does_not_reach_is_said_as_such() -> None:
    model = nn.Module()
    model.__class__ = type("Branch", (nn.Module,), {"forward": lambda self, x, deep=False: self.a(x)})
    model.a, model.b = nn.Linear(3, 2), nn.Linear(3, 2)
    assert rows(plan(model))["b.weight"].reason.startswith("not reached by a forward with default arguments; name it")


def test_tracing_can_be_left_out() -> None:
    assert plan(TextModel(), trace=False).source == "unknown"
    assert plan(TextModel(), trace=False, example_inputs=tokens()).source == "probe"


@pytest.mark.parametrize("inputs", [tokens(), (tokens(),), {"index": tokens()}], ids=["tensor", "tuple", "mapping"])
def test_example_inputs_come_in_three_forms(inputs: object) -> None:
    assert plan(TextModel(), example_inputs=inputs).rows == plan(TextModel(), example_inputs=tokens()).rows


@pytest.mark.parametrize("function", [plan, bayesify], ids=["plan", "bayesify"])
def test_inputs_that_the_model_rejects_are_refused(function) -> None:
    message = rf"{function.__name__}: the model rejects example_inputs \(RuntimeError: .*; pass what its forward takes"
    with pytest.raises(InvalidValueError, match=message):
        function(small(), example_inputs=torch.randn(2, 7))


class Eventful(nn.Module):
    """Changes itself, and every random state, whenever it runs."""

    def __init__(self) -> None:
        super().__init__()
        self.linear, self.norm, self.dropout = nn.Linear(4, 4), nn.BatchNorm1d(4), nn.Dropout(0.5)
        self.codebook = nn.Parameter(torch.randn(4, 4))
        self.unused, self.head = nn.Linear(2, 2), nn.Linear(4, 2)
        self.calls = 0

    def forward(self, x: Tensor) -> Tensor:
        self.calls += 1
        self.codebook.data.mul_(0.9)
        with torch.no_grad():
            self.linear.weight.clamp_(-0.1, 0.1)
        noise = torch.randn_like(x) * random.random()
        return self.head(self.dropout(self.norm(self.linear(x + noise))) @ self.codebook)


def test_planning_leaves_the_model_and_the_random_state_alone() -> None:
    model, x = Eventful(), torch.randn(3, 4)
    before = copy.deepcopy(model.state_dict())
    states = torch.random.get_rng_state(), random.getstate()
    for inputs in (None, x):
        plan(model, example_inputs=inputs)
        bayesify(model, example_inputs=inputs)
    assert torch.equal(states[0], torch.random.get_rng_state())
    assert states[1] == random.getstate()
    assert all(torch.equal(value, before[key]) for key, value in model.state_dict().items())
    assert (model.calls, model.training, len(model.linear._forward_pre_hooks)) == (0, True, 0)


def test_a_plan_prints_within_forty_lines() -> None:
    layer = nn.TransformerEncoderLayer(8, 2, 16, batch_first=True)
    for model in (nn.TransformerEncoder(layer, 24), nn.Sequential(*[SmallResNet() for _ in range(8)]), small()):
        lines = str(plan(model)).splitlines()
        assert len(lines) <= 40
        assert max(map(len, lines)) <= 130
    assert "layers.*.linear*.weight" in str(plan(nn.TransformerEncoder(layer, 24)))


def test_a_plan_of_hundreds_of_kinds_is_cut() -> None:
    model = nn.Module()
    for number in range(60):
        kind = type(f"Kind{chr(97 + number % 26)}{chr(97 + number // 26)}", (nn.Linear,), {})
        model.add_module(f"layer{number}", kind(2, 2))
    text = str(plan(model, trace=False))
    assert len(text.splitlines()) <= 40
    assert "more groups" in text


def test_html_and_json() -> None:
    made = plan(small())
    assert made._repr_html_().count("<tr>") == 1 + len(made.rows)
    assert "BatchNorm2d" in made._repr_html_()
    data = json.loads(made.to_json())
    assert data["summary"] == made.summary
    assert [row["name"] for row in data["rows"]] == [row.name for row in made.rows]
    assert data["rows"][0]["shape"] == [4, 3, 3, 3]


def test_a_plan_is_frozen() -> None:
    made = plan(small())
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.rows = ()  # type: ignore[misc]
    with pytest.raises(dataclasses.FrozenInstanceError):
        made.rows[0].tier = "sampled"  # type: ignore[misc]
