"""The draws of a file: formed in its graph from mean, deviation and one table of numbers, for every kind of weight."""

import numpy as np
import onnx
import pytest
import torch
from drawn_networks import stored_draws
from onnx_models import Recurrent, TinyText, cnn, mlp
from test_uncertainty import bayesian, lenet5
from torch import nn

import bensemble
from bensemble.basis import Basis
from bensemble.layers import BayesianLinear
from convert.onnx import export_onnx
from convert.onnx.uncertainty.draws import NoiseTable, weight_draws


def seeded(seed=0):
    return torch.Generator().manual_seed(seed)


class Tied(nn.Module):
    def __init__(self):
        super().__init__()
        self.words, self.head = nn.Embedding(9, 6), nn.Linear(6, 9, bias=False)
        self.head.weight = self.words.weight

    def forward(self, ids):
        return self.head(self.words(ids).mean(1).tanh())


class Shared(nn.Module):
    def __init__(self):
        super().__init__()
        self.layer, self.head = nn.Linear(4, 4), nn.Linear(4, 3)

    def forward(self, x):
        return self.head(self.layer(self.layer(x).tanh()).tanh())


def rotated(prune=False):
    bnn = bayesian(mlp())
    for module in bnn:
        if isinstance(module, BayesianLinear):
            outer, inner = (torch.linalg.qr(torch.randn(n, n))[0] for n in module.w_mu.shape)
            for name, posterior in bensemble.named_posteriors(module):
                posterior.set_basis(Basis(outer, inner if name == "weight" else None))
    if prune:
        bensemble.prune(bnn, threshold=4.0)
    return bnn


IDS = torch.randint(0, 9, (3, 5))
KINDS = {
    "convolution and norm": (lambda: bayesian(cnn()), torch.randn(3, 1, 8, 8)),
    "recurrent": (lambda: bayesian(Recurrent(nn.LSTM)), IDS),
    "lookup": (lambda: bayesian(TinyText()), (IDS, torch.ones_like(IDS))),
    "tied": (lambda: bayesian(Tied()), IDS),
    "shared": (lambda: bayesian(Shared()), torch.randn(3, 4)),
    "rotated": (rotated, torch.randn(3, 4)),
    "rotated and pruned": (lambda: rotated(prune=True), torch.randn(3, 4)),
    "float64": (lambda: bayesian(mlp().double()), torch.randn(3, 4).double()),
    "float16": (lambda: bayesian(mlp()).half(), torch.randn(3, 4).half()),
}


@pytest.mark.slow
@pytest.mark.parametrize("kind", KINDS)
def test_every_posterior_is_formed_in_the_graph_as_in_torch(kind, tmp_path):
    torch.manual_seed(0)
    make, x = KINDS[kind]
    bnn = make()
    output = {"output": "logits"} if kind == "lookup" else {}
    export_onnx(bnn, tmp_path / "m.onnx", x, outputs="uncertainty", num_samples=5, generator=seeded(), **output)
    found = stored_draws(tmp_path / "m.onnx")
    (expected,) = weight_draws([bnn], 5, seeded())
    posteriors = dict(bensemble.named_posteriors(bnn))
    if kind == "tied":  # the exporter's name of the one weight
        expected, posteriors = ({"head.weight": d["words.weight"]} for d in (expected, posteriors))
    read = {name.rpartition(".")[0] for name in found}
    assert len(read & set(posteriors)) == len(read) > 0
    for name in read:
        for k, sample in enumerate(expected[name].samples):
            torch.testing.assert_close(found[f"{name}.draw{k}"], sample, rtol=1e-6, atol=2e-7)
    assert kind == "lookup" or read == set(posteriors)


def test_draws_come_in_pairs_around_the_mean_with_the_variance_of_the_posterior():
    torch.manual_seed(0)
    for bnn in (bayesian(lenet5()), rotated()):
        (draws,) = weight_draws([bnn], 400, seeded())
        for name, posterior in bensemble.named_posteriors(bnn):
            samples, mean = torch.stack(draws[name].samples).double(), posterior.mean().double()
            torch.testing.assert_close(samples[:200] + samples[200:], 2 * mean.expand(200, *mean.shape))
            ratio = (samples - mean).square().mean(0) / posterior.variance()
            # a mean of 200 squares has the standard deviation sqrt(2 / 200)
            error = (ratio.mean() - 1).abs() / (2 / 200 / min(ratio.numel(), 200)) ** 0.5
            assert error < 5, (name, float(error))
            assert ratio.numel() < 100 or ratio.std() < 1.5 * (2 / 200) ** 0.5


def test_the_table_is_standard_normal_and_the_inputs_of_an_output_read_different_numbers():
    numbers = NoiseTable(5003, 5000, 16, seeded()).numbers.double() / 30
    assert abs(float(numbers.mean())) < 1e-3
    assert float(numbers.square().mean()) == pytest.approx(1, abs=2e-3)
    assert float(numbers.pow(4).mean()) == pytest.approx(3, abs=0.05)
    for model, least in ((bayesian(lenet5()), 6400), (bayesian(nn.Linear(5000, 2)), 80_000), (bayesian(mlp()), 2039)):
        (draws,) = weight_draws([model], 16, seeded())
        table = next(iter(draws.values())).table
        length = len(table.numbers)
        assert least <= length < 1.01 * least
        table.numbers = torch.arange(length)
        for drawn in draws.values():
            rows = table.rows(drawn.start, drawn.mean.numel()).view(8, len(drawn.mean), -1)
            for each in rows.transpose(0, 1).flatten(1):  # the numbers of one output in 16 draws, of which 8 are pairs
                assert len(each.unique()) == len(each)


def digits_cnn() -> nn.Sequential:
    body = [nn.Conv2d(1, 16, 3, padding=1), nn.ReLU(), nn.MaxPool2d(2), nn.Conv2d(16, 32, 3, padding=1), nn.ReLU()]
    return nn.Sequential(*body, nn.MaxPool2d(2), nn.Flatten(), nn.Linear(128, 64), nn.ReLU(), nn.Linear(64, 10))


@pytest.mark.slow
@pytest.mark.parametrize(("make", "size"), [(digits_cnn, 8), (lenet5, 28)])
def test_sixteen_draws_take_at_most_two_files_of_the_mean(make, size, tmp_path):
    torch.manual_seed(0)
    network, x = make().eval(), torch.randn(2, 1, size, size)
    options = {"outputs": "uncertainty", "likelihood": "categorical", "verify": False}
    mean = export_onnx(network, tmp_path / "mean.onnx", x, verify=False).size
    sure = export_onnx(bayesian(network), tmp_path / "sure.onnx", x, **options).size
    assert sure <= 2 * mean


def test_no_weight_is_stored_twice(tmp_path):
    """The mean keeps its name, and the deviation lies beside it."""
    export_onnx(bayesian(mlp()), tmp_path / "m.onnx", torch.randn(3, 4), outputs="uncertainty", num_samples=4)
    stored = {t.name: t for t in onnx.load(tmp_path / "m.onnx").graph.initializer if np.prod(t.dims) > 8}
    assert set(stored) == {"0.weight", "0.weight.spread", "3.weight", "3.weight.spread", "draws.table"}
    assert stored["0.weight.spread"].data_type == onnx.TensorProto.FLOAT16
