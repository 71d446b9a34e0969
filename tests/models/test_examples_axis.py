"""What is an example? Networks whose batches cannot be cut along axis 0, or not at all."""

import pytest
import torch
from torch import nn
from torch.testing import assert_close

import bensemble.fitting.pieces
from bensemble.errors import InvalidValueError
from bensemble.fitting import fit_posterior
from bensemble.likelihoods import Categorical, Gaussian
from bensemble.posteriors import named_posteriors
from bensemble.prediction.monte_carlo import predict
from convert import bayesify


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


class Tagger(nn.Module):
    """Time first: outputs (T, B, C)."""

    def __init__(self, kind=nn.LSTM, outputs=3, **options):
        super().__init__()
        self.rnn = kind(4, 6, **options)
        self.head = nn.Linear(12 if options.get("bidirectional") else 6, outputs)

    def forward(self, x):
        return self.head(self.rnn(x)[0])


class Gated(nn.Module):
    """A closed gate before what passes between positions: values do not tell, slopes do."""

    def __init__(self):
        super().__init__()
        self.body, self.gate = nn.Linear(4, 3), nn.Linear(4, 3)
        nn.init.zeros_(self.gate.weight)
        nn.init.zeros_(self.gate.bias)

    def forward(self, x):
        return self.body(x) + self.gate(x.cumsum(0))


class Graph(nn.Module):
    def __init__(self):
        super().__init__()
        self.body, self.head = nn.Linear(4, 6), nn.Linear(6, 3)

    def forward(self, x, adjacency):
        return adjacency @ self.head((adjacency @ self.body(x)).tanh())


class Contrastive(nn.Module):
    """The classes of an example are the other examples."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(4, 6)

    def forward(self, x):
        z = self.body(x)
        return z @ z.roll(1, 0).t()


class TwoViews(nn.Module):
    """Both halves of a batch are views of the same examples."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(4, 3)

    def forward(self, x):
        left, right = self.body(x).tanh().chunk(2)
        return torch.cat((left * right, left + right))


class Groups(nn.Module):
    """Rows of one group are pooled; the last row is a group of its own."""

    def __init__(self):
        super().__init__()
        self.body = nn.Linear(4, 3)

    def forward(self, x, group):
        same = (group[:, None] == group[None]).float()
        return (same / same.sum(1, keepdim=True)) @ self.body(x)


class Box:
    def __init__(self, x, adjacency):
        self.x, self.adjacency = x, adjacency


class BoxedGraph(Graph):
    def forward(self, box):
        return super().forward(box.x, box.adjacency)


def batch_statistics():
    norm = nn.BatchNorm1d(6, track_running_stats=False)
    return nn.Sequential(nn.Linear(4, 6), norm, nn.Tanh(), nn.Linear(6, 3))


X, ADJACENCY = torch.randn(24, 4), (torch.rand(24, 24) > 0.8).float() + torch.eye(24)
LABELS = torch.randint(0, 3, (24,))
SEQUENCES = torch.randn(7, 24, 4)
WHOLE = {
    "graph": (Graph, (X, ADJACENCY), LABELS),
    "boxed graph": (BoxedGraph, (Box(X, ADJACENCY),), LABELS),
    "batch statistics": (batch_statistics, X, LABELS),
    "contrastive": (Contrastive, X, torch.arange(24)),
    "two views": (TwoViews, X, LABELS),
    "groups": (Groups, (X, torch.arange(24).clamp_max(22) // 2), LABELS),
}


def fitted(model, batch, likelihood, seed=0):
    """The curvature of every posterior, and the number of backward passes."""
    bnn = bayesify(model.eval())
    report = fit_posterior(bnn, [batch], likelihood=likelihood, beta=1.0, generator=seeded(seed))
    widths = {row.name: row.width for row in report.rows}
    return {n: p.sigma().detach() ** -2 - widths[n] ** -2 for n, p in named_posteriors(bnn)}, report.num_passes


def exact(model, x, sigma):
    """The diagonal GGN of a Gaussian from explicit Jacobians."""
    names, weights = zip(*model.named_parameters(), strict=True)
    sums = [torch.zeros_like(w) for w in weights]
    for value in model(x).flatten():
        for total, slope in zip(sums, torch.autograd.grad(value, weights, retain_graph=True), strict=True):
            total += slope.square() / sigma**2
    return dict(zip(names, sums, strict=True))


@pytest.mark.slow
@pytest.mark.parametrize("times", [5, 9])
@pytest.mark.parametrize("make", [
    Tagger, Gated, lambda: Tagger(nn.GRU, bidirectional=True), lambda: Tagger(nn.RNN, num_layers=2),
])  # fmt: skip
def test_time_first_has_the_curvature_of_explicit_jacobians(make, times, monkeypatch):
    """Also with as many times as examples. The mean over 16 fits, within 5 standard errors."""
    monkeypatch.setattr(bensemble.fitting.pieces, "PASSES", 9)
    model, x = make().double().eval(), torch.randn(times, 9, 4, dtype=torch.float64)
    found, passes = zip(*(fitted(model, (x, None), Gaussian(0.5), seed) for seed in range(16)), strict=True)
    assert set(passes) == {9}
    expected = exact(model, x, 0.5)
    for name in found[0]:
        values = torch.stack([f[name].sum() for f in found])
        assert (values.mean() - expected[name].sum()).abs() < 5 * values.std() / 16**0.5, name


@pytest.mark.parametrize("batch_dim", [None, 1])
def test_a_written_batch_axis_is_not_looked_for(batch_dim, monkeypatch):
    """The pieces are the same; without it the first pieces are compared with the whole."""
    calls = []
    monkeypatch.setattr(bensemble.fitting.pieces.Pieces, "_agree", lambda *arguments: calls.append(arguments) or True)
    bnn = bayesify(Tagger().eval())
    report = fit_posterior(
        bnn, [(SEQUENCES, None)], likelihood=Gaussian(0.5), beta=1.0, batch_dim=batch_dim, generator=seeded(0)
    )
    assert report.num_passes == (24 if batch_dim else 7)
    assert bool(calls) == (batch_dim is None)


def test_a_batch_axis_is_a_number():
    with pytest.raises(InvalidValueError, match="batch_dim must be at least 0, got -1"):
        fit_posterior(bayesify(Tagger()), [(SEQUENCES, None)], likelihood=Gaussian(0.5), batch_dim=-1)


def test_time_first_with_targets_of_either_form():
    """Flat targets leave the batch whole. The difference is within 5 standard errors."""
    model, labels = Tagger(), torch.randint(0, 3, (7, 24))
    flat = nn.Sequential(model, nn.Flatten(0, 1))
    cut = [fitted(model, (SEQUENCES, labels), Categorical(dim=-1), seed) for seed in range(8)]
    whole = [fitted(flat, (SEQUENCES, labels.flatten()), "categorical", seed) for seed in range(8)]
    assert {passes for _, passes in cut} == {24}
    assert {passes for _, passes in whole} == {16}
    one = torch.stack([found["rnn.weight_hh_l0"].mean() for found, _ in cut])
    other = torch.stack([found["0.rnn.weight_hh_l0"].mean() for found, _ in whole])
    assert (one.mean() - other.mean()).abs() < 5 * ((one.var() + other.var()) / 8).sqrt()
    assert one.mean() > 1e-3


@pytest.mark.parametrize("case", WHOLE)
def test_a_batch_that_cannot_be_cut_is_taken_whole(case):
    make, inputs, labels = WHOLE[case]
    likelihood = "categorical"
    curvature, passes = fitted(make(), (inputs, labels), likelihood)
    assert passes == 16
    assert all(bool(c.isfinite().all()) and bool((c > 1e-6).any()) for n, c in curvature.items() if "weight" in n)
    bnn = bayesify(make().eval())
    report = fit_posterior(bnn, [(inputs, labels)], likelihood=likelihood, generator=seeded())
    assert report.num_terms == 24


@pytest.mark.filterwarnings("ignore:predict. the posterior is neither")
@pytest.mark.parametrize("case", [*WHOLE, "time first", "gated"])
def test_chunks_predict_what_the_whole_predicts(case):
    make, inputs = WHOLE[case][:2] if case in WHOLE else ({"gated": Gated}.get(case, Tagger), SEQUENCES)
    bnn = bayesify(make().eval(), init_sigma=0.3)
    for size in (1, 2, 5):
        options = {"generator": seeded(1), "num_samples": 3}
        whole, chunked = (
            predict(bnn, inputs, **options),
            predict(bnn, inputs, **(options | {"generator": seeded(1)}), chunk_size=size),
        )
        assert_close(chunked.samples, whole.samples)


@pytest.mark.filterwarnings("ignore:predict. the posterior is neither")
def test_a_loader_of_graphs_may_have_a_chunk_size():
    bnn, graphs = bayesify(Graph().eval(), init_sigma=0.3), [((X[:n], ADJACENCY[:n, :n]), LABELS[:n]) for n in (5, 9)]
    whole, chunked = (predict(bnn, graphs, 3, generator=seeded(1), chunk_size=size) for size in (None, 2))
    assert_close(chunked.mean, whole.mean)
