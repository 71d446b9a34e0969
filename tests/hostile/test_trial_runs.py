"""A trial run leaves no trace on the model, whatever its forward does or raises."""

import contextlib
import random
import tempfile
from collections import deque
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import nn

from bensemble.likelihoods import Gaussian
from bensemble.models.undisturbed import undisturbed
from convert import (
    bayesify,
    check_noise,
    compact,
    compaction_report,
    export_onnx,
    last_layer,
    plan,
    prune_and_repair,
    prune_scores,
    repair,
    to_deterministic,
)

X = torch.randn(2, 4, 8)


class Store:
    def __init__(self):
        self.keys, self.sizes = [], {}


class Hostile(nn.Module):
    """Does what it is told before and after its layer, and may stop at any place."""

    def __init__(self, deeds=(), stops_at=None):
        super().__init__()
        self.base, self.delta = nn.Linear(8, 8), nn.Linear(8, 8, bias=False)
        self.register_buffer("seen", torch.zeros(8))
        self.steps, self.kept, self.table, self.names = 0, [], {"a": [1]}, {"x"}
        self.recent, self.space, self.store = deque(maxlen=3), SimpleNamespace(n=0), Store()
        self.counts, self.noise = np.zeros(3), torch.Generator().manual_seed(1)
        self.dice, self.note = random.Random(2), torch.ones(2)
        self.deeds, self.stops_at = deeds, stops_at

    def forward(self, x):
        for deed in self.deeds:
            DEEDS[deed](self)
        y = self.base(x)
        if self.stops_at is not None and x.shape[1] != self.stops_at:
            raise RuntimeError("half-way")
        return y + self.delta(x)


def merge(m):
    m.base.weight.data += m.delta.weight.data


def replace(m):
    m.base.weight = nn.Parameter(torch.zeros(8, 8))


def remember(m):
    m.steps += 1
    m.kept.append(m.steps)
    m.table["a"].append(2)
    m.table["b"] = m.steps
    m.names.add(m.steps)
    m.recent.append(m.steps)
    m.space.n += 1
    m.store.keys.append(1)
    m.store.sizes[m.steps] = 1
    m.extra = 3


def count(m):
    m.counts += 1
    m.note.add_(1)
    m.seen.add_(1)


def iterate(m):
    with torch.no_grad():
        for parameter in m.parameters():
            parameter.mul_(2.0)


DEEDS = {
    "merge": merge,
    "replace": replace,
    "remember": remember,
    "count": count,
    "iterate": iterate,
    "storage": lambda m: setattr(m.base.bias, "data", torch.zeros(8)),
    "freeze": lambda m: m.base.weight.requires_grad_(False),
    "gradient": lambda m: setattr(m.base.weight, "grad", torch.ones(8, 8)),
    "modes": lambda m: m.base.train(not m.base.training),
    "hook": lambda m: m.base.register_forward_hook(lambda *_: None),
    "module": lambda m: m.add_module("late", nn.Linear(1, 1)),
    "draws": lambda m: (random.random(), np.random.rand(), torch.rand(1)),
    "own draws": lambda m: (m.dice.random(), torch.rand(1, generator=m.noise)),
    "seed": lambda m: (random.seed(5), np.random.seed(5), torch.manual_seed(5)),
    "gradients on": lambda m: torch.set_grad_enabled(True),
    "dtype": lambda m: torch.set_default_dtype(torch.float64),
    "device": lambda m: torch.set_default_device("meta"),
    "autocast": lambda m: torch.autocast("cpu", torch.bfloat16).__enter__(),
}  # fmt: skip


def plain(value):
    """A value as something to compare with ==; tensors by identity of their memory and by their bits."""
    if isinstance(value, torch.Tensor):
        memory = (value.untyped_storage()._cdata, value.requires_grad, plain(value.grad) if value.is_leaf else None)
        return id(value), *memory, value.detach().reshape(-1).numpy().tobytes()
    if isinstance(value, np.ndarray):
        return value.tobytes()
    if isinstance(value, torch.Generator):
        return value.get_state().numpy().tobytes()
    if isinstance(value, random.Random):
        return value.getstate()
    if isinstance(value, nn.Module):
        return id(value), plain(value.__dict__)
    if isinstance(value, dict):
        return [(key, plain(item)) for key, item in value.items()]
    if isinstance(value, (list, tuple, deque)):
        return [plain(item) for item in value]
    return [plain(value.__dict__)] if isinstance(value, (SimpleNamespace, Store)) else repr(value)


def world(model):
    autocast = torch.is_autocast_enabled("cpu"), torch.get_autocast_dtype("cpu"), torch.autocast_increment_nesting()
    torch.autocast_decrement_nesting()
    modes = torch.is_grad_enabled(), torch.get_default_dtype(), torch.get_default_device(), autocast
    drawn = random.getstate(), np.random.get_state()[1].tobytes(), torch.get_rng_state().numpy().tobytes()
    return plain(model), modes, drawn


def bayesian(model):
    return bayesify(model, init_sigma=0.1)


def exported(model):
    with tempfile.TemporaryDirectory() as folder:
        return export_onnx(model, Path(folder) / "a.onnx", X, verify=False)


TRIALS = {
    "plan": (lambda m: m, lambda m: plan(m, example_inputs=X)),
    "plan without inputs": (lambda m: m, plan),
    "last_layer": (lambda m: m, lambda m: last_layer(m, X)),
    "compact": (lambda m: m, lambda m: compact(m, X)),
    "compaction_report": (lambda m: m, lambda m: compaction_report(m, X)),
    "check_noise": (bayesian, lambda m: check_noise(m, X)),
    "export_onnx": (bayesian, exported),
}


@pytest.mark.slow
@settings(max_examples=30, deadline=None, derandomize=True)
@given(
    st.sampled_from(sorted(TRIALS)), st.lists(st.sampled_from(sorted(DEEDS)), max_size=4), st.sampled_from([None, 0, 4])
)
def test_whatever_a_forward_does_or_raises_the_source_is_the_same(name, deeds, stops_at):
    prepare, trial = TRIALS[name]
    model = Hostile().eval()
    model.base.weight.grad = torch.zeros(8, 8)
    model = prepare(model)
    model.deeds, model.stops_at = tuple(deeds), stops_at
    before = world(model)
    with contextlib.suppress(Exception):  # what a trial refuses is its own matter
        trial(model)
    assert world(model) == before


@pytest.mark.parametrize("deed", DEEDS)
def test_each_deed_alone_is_put_back(deed):
    model = Hostile((deed,)).eval()
    before = world(model)
    with undisturbed(model):
        model(X)
    assert world(model) == before


PASSES = {
    "prune_scores": lambda m, loader: prune_scores(m, loader, likelihood=Gaussian(1.0)),
    "repair": lambda m, loader: repair(pruned(m), m, loader),
    "prune_and_repair": lambda m, loader: prune_and_repair(m, loader, sparsity=0.5, likelihood=Gaussian(1.0)).network,
}


def pruned(model):
    return to_deterministic(bayesify(model), sparsity=0.5)


@pytest.mark.parametrize("verb", PASSES)
def test_passes_over_data_leave_no_trace_on_the_source_or_the_result(verb):
    model = Hostile(("merge", "remember", "count", "own draws")).eval()
    before = plain(model)
    found = PASSES[verb](model, [torch.randn(4, 4, 8) for _ in range(3)])
    assert plain(model) == before
    if isinstance(found, nn.Module):
        assert (found.steps, found.kept, found.seen.sum()) == (0, [], 0)


@pytest.mark.parametrize("training", [False, True])
def test_compaction_computes_from_the_models_own_weights(training):
    """A run that stops half-way must not leave moved weights to the next one."""

    class Merging(Hostile):
        def forward(self, x):
            self.base.weight.data += self.delta.weight.data
            y = self.base(x.reshape(len(x), 4, 8))
            self.base.weight.data -= self.delta.weight.data
            return y

    model = Merging().train(training)
    weight, expected = (
        model.base.weight.detach().clone(),
        nn.functional.linear(X, model.base.weight + model.delta.weight),
    )
    small = compact(model, X)
    assert torch.equal(model.base.weight, weight)
    torch.testing.assert_close(small(X), expected + model.base.bias)


def test_what_did_not_change_is_not_written():
    model = nn.Linear(8, 8)
    output = model(X).square().sum()
    check_noise(bayesian(model), X)
    compact(model, X)
    output.backward()


class Counting(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.calls = nn.Linear(8, 4), 0

    def forward(self, x):
        self.calls += 1
        return self.layer(x) + self.calls


def test_a_model_that_torch_load_read_is_put_back(tmp_path):
    """The memory of its tensors has no allocator; torch crashed the process when a shared one was written to."""
    torch.save(nn.Sequential(nn.Linear(3, 2), nn.BatchNorm1d(2)), tmp_path / "whole.pt")
    model = torch.load(tmp_path / "whole.pt", weights_only=False).train()
    values = {name: value.clone() for name, value in model.state_dict().items()}
    with undisturbed(model):
        with undisturbed(model):
            model(torch.randn(4, 3))
        model[0].weight.add_(1)
    torch.testing.assert_close(model.state_dict(), values, rtol=0, atol=0)


def test_a_file_is_that_of_the_first_call(tmp_path):
    """Trials and the tracing are calls too."""
    model = Counting().eval()
    assert export_onnx(model, tmp_path / "a.onnx", X[:, 0]).relative_error < 1e-6
    assert model.calls == 0
