"""Files side by side: what is measured, and what is refused."""

from __future__ import annotations

import gzip
import json
import os
import time

import numpy as np
import onnx
import pytest
import torch
from torch import nn
from torch.utils.data import DataLoader, TensorDataset

from bensemble.errors import InvalidTypeError, InvalidValueError
from convert import OnnxModel, compare_onnx, export_onnx
from convert.onnx.files.measuring import error_of
from convert.onnx.files.report import gzip_size
from convert.onnx.files.sessions import interleaved, resized

pytestmark = pytest.mark.xdist_group("compared files")  # its fixtures are made once


@pytest.fixture(scope="module")
def networks(tmp_path_factory):
    """A wide network and its files: itself, and a version with other weights."""
    tmp_path = tmp_path_factory.mktemp("networks")
    torch.manual_seed(0)
    wide = nn.Sequential(nn.Linear(8, 512), nn.ReLU(), nn.Linear(512, 512), nn.ReLU(), nn.Linear(512, 3))
    other = nn.Sequential(nn.Linear(8, 16), nn.ReLU(), nn.Linear(16, 3))
    x = torch.randn(4, 8)
    files = {"wide": tmp_path / "wide.onnx", "narrow": tmp_path / "narrow.onnx"}
    export_onnx(wide, files["wide"], x)
    export_onnx(other, files["narrow"], x)
    return wide, other, files


def test_every_file_is_measured_on_the_same_data(networks):
    wide, other, files = networks
    x, y = torch.randn(40, 8), torch.randint(3, (40,))
    loader = DataLoader(TensorDataset(x, y), batch_size=16)

    def accuracy(model: nn.Module) -> float:
        return float((model(x).argmax(-1) == y).float().mean())

    wide.train()
    found = compare_onnx(files, loader, model=wide, evaluate=accuracy, batch_sizes=(1, 32), rounds=3)
    assert wide.training
    assert found["wide"].error.relative_error < 1e-5
    assert found["wide"].error.agreement == 1.0
    with torch.no_grad():
        difference = other(x) - wide(x)
        rms = float((difference.square().sum() / wide(x).square().sum()).sqrt())
    assert found["narrow"].error.max_error == pytest.approx(float(difference.abs().max()), rel=1e-4)
    assert found["narrow"].error.rms_error == pytest.approx(rms, rel=1e-4)
    same = float((other(x).argmax(-1) == wide(x).argmax(-1)).float().mean())
    assert found["narrow"].error.agreement == pytest.approx(same)
    assert found["wide"].metric == found.model_metric == pytest.approx(accuracy(wide))
    assert found["narrow"].metric == pytest.approx(accuracy(other))
    assert found["narrow"].latency[32].ratio < 0.5
    assert found["narrow"].size == os.path.getsize(files["narrow"])
    assert found["narrow"].gzip_size == pytest.approx(len(gzip.compress(files["narrow"].read_bytes(), 6)), rel=0.01)
    shown = str(found)
    assert "ms at 32" in shown
    assert "(torch model)" in shown
    assert len({len(line) for line in shown.splitlines()}) == 1
    assert json.loads(json.dumps(found.rows()))[1]["name"] == "narrow"


def test_a_fixed_batch_is_timed_as_it_is(tmp_path):
    path = tmp_path / "fixed.onnx"
    export_onnx(nn.Linear(3, 2), path, torch.randn(5, 3), dynamic_shapes={"input": {}})
    found = compare_onnx({"fixed": path}, torch.randn(5, 3), batch_sizes=(1, 16), rounds=1)
    assert list(found["fixed"].latency) == [5]
    assert found["fixed"].error is None
    assert compare_onnx({"fixed": path}, torch.randn(5, 3), rounds=0)["fixed"].latency == {}


@pytest.mark.slow
def test_ratios_are_of_the_same_round():
    def work(count):
        return lambda: sum(range(count))

    found = interleaved({"one": work(20_000), "ten": work(200_000)}, "one", rounds=5)
    assert found["one"].ratio == 1.0
    assert 5 < found["ten"].ratio < 20
    assert interleaved({"sleep": lambda: time.sleep(0.01)}, "sleep", 2)["sleep"].ms < 5  # sleeping is no CPU time


def test_batches_keep_what_is_not_batched():
    inputs = {"x": np.arange(6).reshape(3, 2), "scale": np.ones(2), "flag": np.array(True)}
    found = resized(inputs, 4)
    assert found["x"].tolist() == [[0, 1], [2, 3], [4, 5], [0, 1]]
    assert found["scale"].shape == (2,)
    assert found["flag"].shape == ()


def test_gzip_size_is_that_of_the_command():
    data = bytes(100_000) + os.urandom(1000)
    assert gzip_size(data) == len(gzip.compress(data, 6, mtime=0))


class Pair(nn.Module):
    def forward(self, a, b):
        return {"sum": a + b, "product": a * b}


def test_a_file_is_called_like_the_model(tmp_path):
    path = tmp_path / "pair.onnx"
    a, b = torch.randn(2, 3), torch.randn(2, 3)
    export_onnx(Pair(), path, (a, b))
    model = OnnxModel(path)
    for found in (model(a, b), model(b=b, a=a)):
        torch.testing.assert_close(found, Pair()(a, b))
    with pytest.raises(InvalidValueError, match=r"'.*pair.onnx' takes 2 inputs \(a, b\), got a tuple of 1"):
        model(a)
    with pytest.raises(InvalidValueError, match=r"'.*pair.onnx' rejects the inputs, got a tuple of 2"):
        model(a, torch.randn(2, 4))
    with pytest.raises(InvalidTypeError, match="inputs must be tensors, got int"):
        model.outputs(3)


def test_refusals(networks, tmp_path):
    wide, _, files = networks
    x = torch.randn(4, 8)
    assert compare_onnx(files, iter([x, x]), model=wide, rounds=0)["wide"].error.relative_error < 1e-5
    with pytest.raises(InvalidTypeError, match=r"files must map names to paths, got \{\}"):
        compare_onnx({}, x)
    data = files["wide"].read_bytes()
    (tmp_path / "broken.onnx").write_bytes(data.replace(b"Gemm", b"Gemx"))
    with pytest.raises(InvalidValueError, match=r"'.*broken.onnx' is damaged, got other bytes than were written"):
        compare_onnx({"broken": tmp_path / "broken.onnx"}, x)
    (tmp_path / "broken.onnx").write_bytes(onnx.load_from_string(data).SerializeToString().replace(b"Gemm", b"Gemx"))
    with pytest.raises(InvalidValueError, match=r"cannot load '.*broken.onnx'"):
        compare_onnx({"broken": tmp_path / "broken.onnx"}, x)
    with pytest.raises(InvalidValueError, match="data must hold a batch, got none"):
        compare_onnx(files, DataLoader([]))
    with pytest.raises(InvalidValueError, match=r"'.*wide.onnx' rejects the inputs, got a tensor of shape \(4, 9\)"):
        compare_onnx(files, torch.randn(4, 9))
    with pytest.raises(InvalidTypeError, match="evaluate must return a number, got 'high' for 'wide'"):
        compare_onnx(files, x, evaluate=lambda model: "high", rounds=0)
    with pytest.raises(InvalidValueError, match="evaluate must return a number, got NaN for 'wide'"):
        compare_onnx(files, x, evaluate=lambda model: float("nan"), rounds=0)
    with pytest.raises(InvalidValueError, match=r"outputs must have the shapes of the model's \[\[4, 512\]\]"):
        compare_onnx(files, x, model=wide[:1], rounds=0)
    with pytest.raises(InvalidValueError, match="outputs must be numbers, got NaN"):
        error_of(wide, wide, [torch.full((1, 8), float("nan"))])
    with pytest.raises(InvalidValueError, match="data must give outputs other than 0"):
        error_of(wide, wide, [])
