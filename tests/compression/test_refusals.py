"""What is refused, and that it leaves everything as it was; the outputs that ``evaluate`` gets."""

from __future__ import annotations

import math
import tempfile
from collections import namedtuple
from dataclasses import dataclass
from pathlib import Path

import pytest
import torch
from torch import nn

from bensemble.errors import ConversionError, ExportError, InvalidTypeError, InvalidValueError
from convert import OnnxModel, UnmetConstraintsError, bayesify, compare_onnx, compress
from convert.compression.results import Constraints

from .in_memory import closeness, measured, mlp


def _refused(tmp_path, error, match, **changes):
    model, x = mlp(8)
    path = tmp_path / "small.onnx"
    path.write_bytes(b"old")
    arguments = {"evaluate": closeness(model, x), "example_inputs": x, "path": path, "max_drop": 0.1, **changes}
    with pytest.raises(error, match=match):
        compress(model, **arguments)
    assert path.read_bytes() == b"old"
    assert [entry.name for entry in tmp_path.iterdir()] == ["small.onnx"]
    assert not list(Path(tempfile.gettempdir()).glob("bensemble-*"))


def _fails_on_the_second():
    calls = []

    def evaluate(network):
        calls.append(network)
        if len(calls) == 6:  # after the network itself and four whose outputs mean nothing
            raise KeyError("labels")
        return -float(len(calls))

    return evaluate


def _interrupted(network):
    raise KeyboardInterrupt


@pytest.mark.slow
@pytest.mark.parametrize(
    ("error", "match", "changes"),
    [
        (InvalidValueError, "one of max_drop, max_latency_ms and max_size must be given", {"max_drop": None}),
        (InvalidValueError, "max_drop must be finite and at least 0, got -1", {"max_drop": -1}),
        (InvalidValueError, "max_size must be finite and above 0, got 0", {"max_size": 0}),
        (InvalidTypeError, r"evaluate must be callable as \(model\), got 0.9", {"evaluate": 0.9}),
        (InvalidTypeError, r"repair must be callable as \(network\), got .update_bn", {"repair": "update_bn"}),
        (InvalidValueError, "granularities must be 'weight' or 'channel', got 'head'", {"granularities": ["head"]}),
        (
            InvalidValueError,
            "evaluate must return a number, got NaN for 'posterior mean'",
            {"evaluate": lambda m: math.nan},
        ),
        (InvalidTypeError, "evaluate must return a number, got 'good'", {"evaluate": lambda m: "good"}),
        (
            ConversionError,
            "evaluate failed on 'SNR > .*', got KeyError: 'labels'",
            {"evaluate": _fails_on_the_second()},
        ),
        (KeyboardInterrupt, "^$", {"evaluate": _interrupted}),
        (
            InvalidValueError,
            r"calibration_data must be like example_inputs, .* \(64, 16\) .* got a tensor of shape \(8, 5\)",
            {"calibration_data": torch.randn(8, 5)},
        ),
    ],
    ids=lambda value: None if isinstance(value, (dict, type)) else value[:40],
)
def test_refusals_leave_everything_as_it_was(tmp_path_factory, tmp_path, monkeypatch, error, match, changes):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("temporary")))
    _refused(tmp_path, error, match, **changes)


class Answers(nn.Module):
    """Several outputs in a structure."""

    def __init__(self, form):
        super().__init__()
        self.linear, self.form = nn.Linear(8, 3), form

    def forward(self, x):
        return self.form(self.linear(x))


Pair = namedtuple("Pair", "logits energy")


@dataclass
class Fields:
    logits: torch.Tensor
    energy: torch.Tensor | None = None


@pytest.mark.slow
@pytest.mark.parametrize(
    ("form", "logits"),
    [
        (lambda y: {"logits": y}, lambda out: out["logits"]),
        (lambda y: {"deep": {"logits": y}, "more": [y.sum(1)]}, lambda out: out["deep"]["logits"]),
        (lambda y: (y, y.sum(1)), lambda out: out[0]),
        (lambda y: [y], lambda out: out[0]),
        (lambda y: Pair(y, y.sum(1)), lambda out: out.logits),
        (lambda y: Fields(y), lambda out: out.logits),
    ],
)
def test_evaluate_gets_the_models_own_type_of_output(tmp_path, form, logits):
    torch.manual_seed(0)
    model, x = bayesify(Answers(form)), torch.randn(200, 8)
    labels = logits(model.eval()(x)).argmax(1)

    def evaluate(network):
        return float((logits(network(x)).argmax(1) == labels).float().mean())

    options = {"granularities": ["weight"], "scores": "snr", "refine": 0}
    found = compress(model, evaluate, x[:4], tmp_path / "z.onnx", max_drop=0.01, **options)
    assert found.baseline.metric > 0.99
    assert evaluate(OnnxModel(found.path, like=model(x))) == found.chosen.metric
    compared = compare_onnx({"a": found.path}, x, model=model, evaluate=evaluate, rounds=0)
    assert compared["a"].metric == found.chosen.metric
    with pytest.raises(InvalidValueError, match="like must have a tensor for each output of"):
        OnnxModel(found.path, like=[x, x, x])


@pytest.mark.usefixtures("in_memory")
def test_constraints_that_no_file_meets_leave_everything_as_it_was(tmp_path_factory, tmp_path, monkeypatch):
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path_factory.mktemp("temporary")))
    match = "no file meets max_drop=0.1, max_size=10, .* the least for max_size is"
    _refused(tmp_path, UnmetConstraintsError, match, max_size=10)


class Sum(nn.Module):
    """A weight that no matrix product reads."""

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.randn(4, 4))

    def forward(self, x):
        return x + self.weight


@pytest.mark.slow
@pytest.mark.parametrize(
    ("model", "x", "message"),
    [
        (nn.Linear(4, 3).double(), torch.randn(8, 4).double(), "quantize='int8' needs float32 weights, got double"),
        (Sum(), torch.randn(8, 4, 4), "quantize='int8' must find weights of convolutions or .*, got 1 Add"),
    ],
)
def test_a_graph_that_cannot_be_quantised_is_refused_before_the_search(tmp_path, model, x, message):
    points = []
    bnn = bayesify(model, include="weight")
    with pytest.raises(ExportError, match=message):
        compress(
            bnn, closeness(bnn, x), x, tmp_path / "x.onnx", max_drop=0.1, calibration_data=x, progress=points.append
        )
    assert [point.name for point in points] == ["posterior mean"]
    assert not list(tmp_path.iterdir())


def test_a_deterministic_model_is_refused(tmp_path):
    with pytest.raises(InvalidValueError, match=r"compress: Linear has no posteriors, .*call convert\.bayesify"):
        compress(nn.Linear(3, 2), lambda m: 1.0, torch.randn(4, 3), tmp_path / "x.onnx", max_drop=0.1)


def test_what_was_measured_is_kept_when_nothing_meets_the_constraints():
    points = [measured(0.9, 10, 1.0), measured(0.8, 8, 1.0)]
    error = UnmetConstraintsError(Constraints(max_size=5), points)
    assert error.points == tuple(points)
    assert isinstance(error, ConversionError)
    assert "no file meets max_size=5, got 2 files: the least for max_size is 8" in str(error)
