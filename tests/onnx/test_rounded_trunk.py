"""A file in closed form with an int8 trunk: the last layer and all that follows it stay float32."""

from __future__ import annotations

import json

import numpy as np
import onnx
import pytest
import torch
from onnx_models import run_file
from torch import nn

import bensemble
from bensemble import ExportError, InvalidValueError
from convert import bayesify, export_onnx

pytestmark = [pytest.mark.slow, pytest.mark.xdist_group("rounded trunk")]  # its files are made once


@pytest.fixture(scope="module")
def data():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(300, 1, 8, 8, generator=generator)
    return x, (x[:, 0, :4].mean((1, 2)) > x[:, 0, 4:].mean((1, 2))).long()


@pytest.fixture(scope="module")
def bnn(data):
    torch.manual_seed(0)
    layers = [nn.Conv2d(1, 8, 3), nn.ReLU(), nn.Flatten(), nn.Linear(288, 32), nn.ReLU(), nn.Linear(32, 3)]
    bnn = bayesify(nn.Sequential(*layers), include="5", example_inputs=data[0][:2])
    bensemble.fit_posterior(bnn, [data], likelihood="categorical", beta=1.0)
    return bnn


@pytest.fixture(scope="module")
def files(bnn, data, tmp_path_factory):
    folder = tmp_path_factory.mktemp("rounded")
    options = {"outputs": "uncertainty", "likelihood": "categorical"}
    export_onnx(bnn, folder / "float.onnx", data[0][:2], **options)
    rounding = {"quantize": "int8", "calibration_data": data[0]}
    report = export_onnx(bnn, folder / "int8.onnx", data[0][:2], **options, **rounding)
    return folder / "float.onnx", folder / "int8.onnx", report


def rounded_weights(path):
    proto = onnx.load(path)
    return {tuple(t.dims) for t in proto.graph.initializer if t.data_type == onnx.TensorProto.INT8 and len(t.dims) > 1}


def test_the_trunk_is_rounded_and_the_head_is_not(bnn, files):
    assert rounded_weights(files[0]) <= rounded_weights(files[1])
    assert rounded_weights(files[1]) - rounded_weights(files[0]) == {(8, 1, 3, 3), (32, 288)}
    head = bnn[5].w_mu.detach().numpy()
    floats = [onnx.numpy_helper.to_array(t) for t in onnx.load(files[1]).graph.initializer if t.data_type == 1]
    assert any(np.array_equal(t, head) or np.array_equal(t, head.T) for t in floats if t.ndim == 2)


def test_the_answers_are_those_of_the_float_file_up_to_rounding(files, data):
    exact, rounded = (run_file(path, input=data[0]) for path in files[:2])
    assert files[2].quantization == "int8 static, per channel"
    for name in ("probs", "entropy", "mutual_information"):
        assert 0 < np.abs(exact[name] - rounded[name]).max() < 0.05


@pytest.mark.parametrize("count", [100, 1500], ids=["few", "many"])  # held-out terms, compared in one step or in two
def test_pvalues_count_among_the_held_out_scores_of_the_file_itself(bnn, data, tmp_path, count):
    held_out = list(torch.randn(count, 1, 8, 8, generator=torch.Generator().manual_seed(1)).split(500))
    novelty = bensemble.fit_novelty(bnn, [data], held_out)
    options = {"outputs": "uncertainty", "likelihood": "categorical", "novelty": novelty, "calibration_data": held_out}
    export_onnx(bnn, tmp_path / "int8.onnx", data[0][:2], **options, quantize="int8")
    found = run_file(tmp_path / "int8.onnx", input=torch.cat(held_out))
    exact, scores = novelty.score(held_out).numpy(), found["novelty"]
    assert 0 < np.abs(scores - exact).max() < 0.5 * exact.std()
    above = (scores[None] >= scores[:, None]).sum(1)
    np.testing.assert_allclose(found["novelty_pvalue"], (1 + above) / (count + 1), atol=1e-5)
    told = json.loads({p.key: p.value for p in onnx.load(tmp_path / "int8.onnx").metadata_props}["bensemble.novelty"])
    assert told["num_data"] == count
    np.testing.assert_allclose(told["quantiles"], np.quantile(scores.astype(float), np.linspace(0, 1, 101)), atol=1e-5)
    outside = torch.full((1, 1, 8, 8), 50.0)
    assert run_file(tmp_path / "int8.onnx", input=outside)["novelty_pvalue"] == pytest.approx(1 / (count + 1))


@pytest.fixture
def tagger():
    """A network that tags tokens, some of which are ignored, and its training and held-out batches."""
    generator = torch.Generator().manual_seed(0)
    x = torch.randint(12, (300, 6), generator=generator)
    y = torch.where(torch.rand(300, 6, generator=generator) < 0.3, -100, x % 3)
    torch.manual_seed(0)
    net = nn.Sequential(nn.Embedding(12, 8), nn.Linear(8, 16), nn.Tanh(), nn.Linear(16, 3))
    bnn = bayesify(net, include="3", example_inputs=x[:2])
    return bnn, [(x[:150], y[:150])], list(zip(x[150:].split(40), y[150:].split(40), strict=True))


def test_tokens_that_are_ignored_are_not_counted(tagger, tmp_path):
    bnn, train, held_out = tagger
    likelihood = bensemble.likelihoods.Categorical(dim=-1)
    novelty = bensemble.fit_novelty(bnn, train, held_out, likelihood=likelihood)
    options = {"outputs": "uncertainty", "likelihood": likelihood, "novelty": novelty, "quantize": "int8"}
    export_onnx(bnn, tmp_path / "int8.onnx", train[0][0][:2], **options, calibration_data=held_out)
    kept = torch.cat([y for _, y in held_out]).ne(-100).numpy()
    found = run_file(tmp_path / "int8.onnx", input=torch.cat([x for x, _ in held_out]))
    scores = found["novelty"][kept]
    above = (scores[None] >= scores[:, None]).sum(1)
    np.testing.assert_allclose(found["novelty_pvalue"][kept], (1 + above) / (kept.sum() + 1), atol=1e-5)
    with pytest.raises(InvalidValueError, match=r"got 900 terms with other scores than its .* with its targets"):
        export_onnx(bnn, tmp_path / "a.onnx", train[0][0][:2], **options, calibration_data=[x for x, _ in held_out])


def test_held_out_terms_of_which_a_part_was_kept_are_refused(tagger, tmp_path, monkeypatch):
    bnn, train, held_out = tagger
    for module in ("bensemble.novelty.heldout", "convert.onnx.uncertainty.novelty"):
        monkeypatch.setattr(f"{module}.MOST", 400)
    likelihood = bensemble.likelihoods.Categorical(dim=-1)
    novelty = bensemble.fit_novelty(bnn, train, held_out, likelihood=likelihood)
    options = {"outputs": "uncertainty", "likelihood": likelihood, "novelty": novelty, "quantize": "int8"}
    with pytest.raises(InvalidValueError, match=r"chosen at random of .*; fit it with at most 400 of them"):
        export_onnx(bnn, tmp_path / "a.onnx", train[0][0][:2], **options, calibration_data=held_out)


def test_an_ensemble_keeps_all_heads(bnn, data, tmp_path):
    torch.manual_seed(1)
    other = bayesify(nn.Sequential(nn.Flatten(), nn.Linear(64, 16), nn.ReLU(), nn.Linear(16, 3)), include="3",
                     example_inputs=data[0][:2])  # fmt: skip
    bensemble.fit_posterior(other, [data], likelihood="categorical", beta=1.0)
    options = {"outputs": "uncertainty", "likelihood": "categorical", "quantize": "int8", "calibration_data": data[0]}
    export_onnx([bnn, other], tmp_path / "both.onnx", data[0][:2], **options)
    assert {(8, 1, 3, 3), (32, 288), (16, 64)} <= rounded_weights(tmp_path / "both.onnx")
    assert not {(3, 32), (3, 16)} & rounded_weights(tmp_path / "both.onnx")


class Pooled(nn.Module):
    """A product on sequences (MatMul), one on their means (Gemm), and the last layer."""

    def __init__(self):
        super().__init__()
        self.each, self.mean, self.last = nn.Linear(6, 32), nn.Linear(32, 64), nn.Linear(64, 3)

    def forward(self, input):
        return self.last(torch.relu(self.mean(torch.relu(self.each(input)).mean(1))))


@pytest.mark.parametrize(
    ("net", "last", "shape", "rounded"),
    [
        (nn.Sequential(nn.Linear(6, 24), nn.ReLU(), nn.Linear(24, 3)), "2", (40, 6), {(6, 24)}),
        (Pooled(), "last", (40, 5, 6), {(6, 32), (32, 64)}),
    ],
)
def test_a_trunk_of_products_is_rounded_without_data(net, last, shape, rounded, tmp_path):
    bnn, x = bayesify(net, include=last, example_inputs=torch.randn(2, *shape[1:]), init_sigma=0.1), torch.randn(shape)
    options = {"outputs": "uncertainty", "likelihood": "categorical"}
    export_onnx(bnn, tmp_path / "float.onnx", x[:2], **options)
    report = export_onnx(bnn, tmp_path / "int8.onnx", x[:2], **options, quantize="int8")
    assert report.quantization == "int8 dynamic, per channel"
    assert rounded_weights(tmp_path / "int8.onnx") - rounded_weights(tmp_path / "float.onnx") == rounded
    exact, found = (run_file(tmp_path / name, input=x) for name in ("float.onnx", "int8.onnx"))
    for name in ("probs", "entropy", "mutual_information"):
        assert 0 < np.abs(exact[name] - found[name]).max() < 0.05


def test_what_cannot_be_rounded_is_refused(bnn, data, tmp_path):
    options = {"outputs": "uncertainty", "likelihood": "categorical", "quantize": "int8", "calibration_data": data[0]}
    flat, options_of_flat = data[0].flatten(1), {**options, "calibration_data": data[0].flatten(1)}
    for net, message in (
        (nn.Linear(64, 3), "must find layers before the last one"),
        (nn.Sequential(nn.Tanh(), nn.Linear(64, 3)), "must find weights of convolutions"),
    ):
        alone = bayesify(net, include=nn.Linear, example_inputs=flat[:2])
        with pytest.raises(ExportError, match=message):
            export_onnx(alone, tmp_path / "a.onnx", flat[:2], **options_of_flat)
    with pytest.raises(InvalidValueError, match="a last layer in closed form, got outputs='uncertainty' by samples"):
        export_onnx(bnn, tmp_path / "a.onnx", data[0][:2], **options, method="samples")
    options["novelty"] = bensemble.fit_novelty(bnn, [(data[0][:200], data[1][:200])], [(data[0][200:], data[1][200:])])
    for inputs, message in (
        (None, "needs calibration_data, got None"),
        (data[0][:100], "got 100 terms with other scores"),
    ):
        with pytest.raises(InvalidValueError, match=message):
            export_onnx(bnn, tmp_path / "a.onnx", data[0][:2], **options | {"calibration_data": inputs})
    assert not list(tmp_path.iterdir())
