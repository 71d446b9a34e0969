"""Parts of networks that other tools stumble over: nested tensors, weights without values, shapes or elements."""

import pytest
import torch
from torch import nn
from torch.nn.utils.parametrizations import orthogonal, spectral_norm
from torch.testing import assert_close

import bensemble
import convert

X, Y = torch.randn(24, 6, generator=torch.Generator().manual_seed(0)), torch.arange(24) % 3
LOADER = [(X[:12], Y[:12]), (X[12:], Y[12:])]


class Encoder(nn.Module):
    """Packs its rows into a nested tensor where it may."""

    def __init__(self):
        super().__init__()
        layer = nn.TransformerEncoderLayer(6, 2, 12, batch_first=True)
        self.encoder, self.head = nn.TransformerEncoder(layer, 2, enable_nested_tensor=True), nn.Linear(6, 3)

    def forward(self, x, mask):
        return self.head(self.encoder(x, src_key_padding_mask=mask)[:, 0])


class Empty(nn.Module):
    """Has a layer without inputs."""

    def __init__(self):
        super().__init__()
        self.first, self.none, self.last = nn.Linear(6, 8), nn.Linear(0, 4), nn.Linear(12, 3)

    def forward(self, x):
        return self.last(torch.cat([self.first(x).relu(), self.none(x[:, :0])], 1))


class Spare(nn.Module):
    """Has a layer without values that no forward uses."""

    def __init__(self):
        super().__init__()
        self.first, self.last, self.spare = nn.Linear(6, 8), nn.Linear(8, 3), nn.Linear(3, 3, device="meta")

    def forward(self, x):
        return self.last(self.first(x).relu())


class Lazy(nn.Module):
    """Has a layer without a shape."""

    def __init__(self):
        super().__init__()
        self.first, self.last = nn.LazyLinear(8), nn.Linear(8, 3)

    def forward(self, x):
        return self.last(self.first(x).relu())


def _half_removed(make):
    net = make()
    with torch.no_grad():
        net.first.weight[:4] = 0
    return net


def _seeded(make):
    torch.manual_seed(0)
    return make().eval()


@pytest.mark.filterwarnings("ignore:fit_novelty", "ignore:The PyTorch API of nested tensors")
def test_novelty_of_attention_that_packs_padded_rows():
    net, fast = _seeded(Encoder), torch.backends.mha.get_fastpath_enabled()
    x, mask = torch.randn(24, 7, 6), torch.zeros(24, 7, dtype=torch.bool)
    mask[3, 4:] = True
    novelty = bensemble.fit_novelty(net, [((x, mask), Y)], [((x, mask), Y)])
    assert novelty.score((x, mask)).isfinite().all()
    assert torch.backends.mha.get_fastpath_enabled() == fast


@pytest.mark.filterwarnings("ignore:Initializing zero-element")
def test_a_layer_without_inputs_is_left_where_it_is():
    net, pruned = _seeded(Empty), _seeded(lambda: _half_removed(Empty))
    bnn = convert.bayesify(net)
    groups = convert.channel_groups(bnn, X)
    smaller = convert.to_deterministic(bnn, sparsity=0.4, granularity=groups)
    assert_close(convert.compact(smaller, X)(X), smaller(X))
    report = convert.repair_report(pruned, net, LOADER)
    assert {row.name: row.note for row in report.rows}["none.weight"] == "without values"


@pytest.mark.filterwarnings("ignore:fit_novelty")
def test_a_part_without_values_hinders_only_what_writes_it(tmp_path):
    net = _seeded(Spare)
    bnn = convert.bayesify(net, include="last", example_inputs=X)
    bensemble.fit_posterior(bnn, LOADER, likelihood="categorical")
    prediction = bensemble.predict(bnn, X, likelihood="categorical")
    assert (prediction.method, prediction.probs.isfinite().all()) == ("closed", True)
    assert bensemble.fit_novelty(net, LOADER, LOADER).score(X).isfinite().all()
    assert convert.repair_report(_seeded(lambda: _half_removed(Spare)), net, LOADER).rows
    with pytest.raises(bensemble.CheckpointError, match=r"save: 'spare\.\w+' must have values, .* meta device"):
        bensemble.save(bnn, tmp_path / "bnn.safetensors")
    with pytest.raises(bensemble.ExportError, match="no data"):
        convert.export_onnx(net, tmp_path / "net.onnx", X)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "verb",
    {
        "bayesify": lambda net, path: convert.bayesify(net),
        "last_layer": lambda net, path: convert.last_layer(net, X),
        "compact": lambda net, path: convert.compact(net, X),
        "repair": lambda net, path: convert.repair(net, net, LOADER),
        "export_onnx": lambda net, path: convert.export_onnx(net, path, X),
    }.items(),
    ids=lambda item: item[0],
)
def test_a_lazy_layer_needs_one_forward(verb, tmp_path):
    name, call = verb
    with pytest.raises(
        bensemble.ConversionError, match=rf"(?s){name}: .*'first\.\w+' (of LazyLinear )?has no shape yet"
    ):
        call(Lazy(), tmp_path / "net.onnx")


def test_parametrized_layers_before_the_last_are_computed_in_uncertainty_files(tmp_path):
    pytest.importorskip("onnxruntime")
    net = nn.Sequential(orthogonal(nn.Linear(6, 6)), nn.ReLU(), spectral_norm(nn.Linear(6, 6)), nn.ReLU())
    net = _seeded(lambda: net.append(nn.Linear(6, 3)))
    bnn = convert.bayesify(net, include=convert.last_layer(net, X), example_inputs=X)
    bensemble.fit_posterior(bnn, LOADER, likelihood="categorical")
    convert.export_onnx(bnn, tmp_path / "a.onnx", X, outputs="uncertainty", likelihood="categorical")
    from convert.runtime import UncertaintySession

    found = UncertaintySession(tmp_path / "a.onnx")(X.numpy())["probs"]
    assert_close(torch.from_numpy(found), bensemble.predict(bnn, X, likelihood="categorical").probs, atol=1e-5, rtol=0)


@pytest.mark.slow
@pytest.mark.parametrize("method", ["closed", "samples"])
def test_a_float64_network_becomes_an_uncertainty_file(method, tmp_path):
    pytest.importorskip("onnxruntime")
    net, x = _seeded(lambda: nn.Sequential(nn.Linear(6, 8), nn.ReLU(), nn.Linear(8, 3)).double()), X.double()
    bnn = convert.bayesify(net, include="2", example_inputs=x)
    bensemble.fit_posterior(bnn, [(x, Y)], likelihood="categorical")
    options = {"outputs": "uncertainty", "likelihood": "categorical", "method": method}
    assert convert.export_onnx(bnn, tmp_path / "a.onnx", x, **options).max_error < 1e-5
