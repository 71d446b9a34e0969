"""The random states of the program are its own: what looks, writes or checks never moves them."""

from __future__ import annotations

import copy
import random
from types import FunctionType

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

import bensemble
import convert
from convert.runtime import UncertaintySession

pytestmark = pytest.mark.xdist_group("random state")  # its fixtures are made once

X, Y = torch.randn(24, 4), torch.arange(24) % 3


class Subject:
    """A fitted network, its deterministic source, and files of it."""

    def __init__(self, folder):
        self.folder = folder
        self.plain = nn.Sequential(nn.Linear(4, 8), nn.ReLU(), nn.Dropout(0.5), nn.Linear(8, 3))
        self.bnn = convert.bayesify(self.plain).eval()
        with torch.no_grad():
            for _, posterior in bensemble.named_posteriors(self.bnn):
                posterior.rho.add_(torch.rand_like(posterior.rho))
        self.prediction = bensemble.predict(self.bnn, X, 4, likelihood="categorical")
        convert.export_onnx(self.bnn, folder / "net.onnx", X[:1])
        bensemble.save(self.bnn, folder / "net")
        torch.save(self.plain.state_dict(), folder / "plain.pt")

    def generator(self):
        return torch.Generator().manual_seed(3)


def uncertainty(s):
    options = {"outputs": "uncertainty", "likelihood": "categorical", "num_samples": 2}
    convert.export_onnx(s.bnn, s.folder / "sure.onnx", X[:1], **options)
    UncertaintySession(s.folder / "sure.onnx")(X.numpy())


def compress(s):
    """Stopped at the second file: the search is covered by its parts."""
    scores = iter([1.0])
    with pytest.raises(bensemble.ConversionError, match="evaluate failed"):
        convert.compress(s.bnn, lambda model: next(scores), X, s.folder / "small.onnx", max_drop=0.5)


CONVERT = {
    "last_layer": lambda s: convert.last_layer(s.plain, X),
    "plan": lambda s: (str(convert.plan(s.plain)), str(convert.plan(s.plain, example_inputs=X))),
    "bayesify": lambda s: convert.bayesify(s.plain, example_inputs=X),
    "to_deterministic": lambda s: convert.to_deterministic(s.bnn, sparsity=0.5),
    "check_noise": lambda s: str(convert.check_noise(s.bnn, X)),
    "sparsity": lambda s: str(convert.sparsity(s.plain)),
    "compact": lambda s: convert.compact(convert.to_deterministic(s.bnn, sparsity=0.9, granularity="channel"), X),
    "load_weights": lambda s: convert.load_weights(copy.deepcopy(s.plain), s.folder / "plain.pt"),
    "prune_scores": lambda s: convert.prune_scores(s.plain, [X, X]),
    "prune_and_repair": lambda s: str(convert.prune_and_repair(s.plain, [X, X], sparsity=0.5, steps=2)),
    "GradualPruning": lambda s: convert.GradualPruning(
        copy.deepcopy(s.plain), sparsity=0.5, steps=1, score="obd", loader=[X, X], repair=True
    ).step(),
    "repair": lambda s: convert.repair(convert.to_deterministic(s.bnn, sparsity=0.5), s.plain, [X]),
    "repair_report": lambda s: str(convert.repair_report(convert.to_deterministic(s.bnn, sparsity=0.5), s.plain, [X])),
    "compaction_report": lambda s: str(convert.compaction_report(s.plain, X)),
    "channel_groups": lambda s: convert.channel_groups(s.bnn, X),
    "export_onnx": lambda s: convert.export_onnx(s.bnn, s.folder / "again.onnx", X[:1]),
    "inspect_onnx": lambda s: str(convert.inspect_onnx(s.folder / "net.onnx")),
    "compare_onnx": lambda s: str(convert.compare_onnx({"net": s.folder / "net.onnx"}, X, model=s.bnn)),
    "compress": compress,
}
BENSEMBLE = {
    "save": lambda s: bensemble.save(s.bnn, s.folder / "again"),
    "load": lambda s: bensemble.load(s.folder / "net", copy.deepcopy(s.plain)),
    "prune": lambda s: bensemble.prune(s.bnn, sparsity=0.5),
    "pruning_masks": lambda s: bensemble.pruning_masks(s.bnn, sparsity=0.5),
    "clear_masks": lambda s: bensemble.clear_masks(s.bnn),
    "apply_masks": lambda s: bensemble.apply_masks(s.bnn, bensemble.pruning_masks(s.bnn, sparsity=0.5)),
    "posterior_summary": lambda s: str(bensemble.posterior_summary(s.bnn)),
    "named_posteriors": lambda s: str(list(bensemble.named_posteriors(s.bnn))),
    "kl_divergence": lambda s: bensemble.kl_divergence(s.bnn),
    "elbo_loss": lambda s: bensemble.elbo_loss(torch.ones(()), bensemble.kl_divergence(s.bnn), num_data=9),
    "distillation_loss": lambda s: bensemble.distillation_loss(torch.ones(9, 3), torch.zeros(9, 3)),
    "kl_warmup": lambda s: bensemble.kl_warmup(1, 10),
    "param_groups": lambda s: bensemble.param_groups(s.bnn, lr=0.1),
    "set_prior": lambda s: bensemble.set_prior(s.bnn, "ard"),
    "set_posterior": lambda s: bensemble.set_posterior(s.bnn, {}, {"0.weight": torch.ones(8, 4)}),
    "predict": lambda s: bensemble.predict(s.bnn, X, 2, generator=s.generator()),
    "sampling": lambda s: bensemble.sampling(s.bnn, s.generator()).__enter__(),
    "calibrate": lambda s: bensemble.calibrate(s.prediction, Y).prediction_set(s.prediction),
    "rejection_curve": lambda s: bensemble.rejection_curve(s.prediction, Y),
    "fit_posterior": lambda s: bensemble.fit_posterior(
        s.bnn, DataLoader(TensorDataset(X, Y), 8), likelihood="categorical", generator=s.generator()
    ),
    "fit_novelty": lambda s: bensemble.fit_novelty(
        s.bnn, DataLoader(TensorDataset(X, Y), 8), DataLoader(TensorDataset(X, Y), 8), generator=s.generator()
    ).score(X),
}
OTHER = {
    "uncertainty": uncertainty,
    "repr": lambda s: repr(s.bnn),
    "state_dict": lambda s: s.bnn.load_state_dict(s.bnn.state_dict()),
    "deepcopy": lambda s: copy.deepcopy(s.bnn),
    "eval forward": lambda s: s.bnn(X),
}


@pytest.fixture(scope="module")
def made(tmp_path_factory):
    return Subject(tmp_path_factory.mktemp("subject"))


@pytest.fixture
def subject(made):
    """The same files for every test, and networks of its own."""
    own = copy.copy(made)
    own.plain, own.bnn = copy.deepcopy(made.plain), copy.deepcopy(made.bnn)
    return own


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("name", [*CONVERT, *BENSEMBLE, *OTHER])
def test_the_random_states_stay(name, subject):
    before = torch.get_rng_state(), random.getstate(), np.random.get_state()[1].copy()
    (CONVERT | BENSEMBLE | OTHER)[name](subject)
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()
    assert np.array_equal(before[2], np.random.get_state()[1])


@pytest.mark.parametrize(("package", "table"), [(convert, CONVERT), (bensemble, BENSEMBLE)])
def test_every_public_function_is_in_the_table(package, table):
    public = {name for name in package.__all__ if name.islower() and callable(getattr(package, name))}
    assert {name for name in public if isinstance(getattr(package, name), FunctionType)} <= set(table)
    assert set(table) <= set(package.__all__)
