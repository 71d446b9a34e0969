"""The sidecar of an uncertainty file: what it says, and that it is written with the file or not at all."""

import hashlib
import json

import pytest
import torch
from torch import nn
from uncertainty_files import CLASSES, model, write_calibrated

from bensemble.errors import InvalidValueError
from convert.onnx import export_onnx
from convert.onnx.assembly import _pack
from convert.runtime import UncertaintySession

pytestmark = pytest.mark.xdist_group("sidecar")


@pytest.mark.slow
def test_the_sidecar_says_what_the_metadata_says(tmp_path):
    path = tmp_path / "sure.onnx"
    _, calibration = write_calibrated(path)
    assert sorted(file.name for file in tmp_path.iterdir()) == ["sure.onnx", "sure.onnx.json"]
    told, session, data = json.loads((tmp_path / "sure.onnx.json").read_text("utf-8")), UncertaintySession(path), path
    assert told["bensemble_sidecar"] == 1
    digest = hashlib.sha256(data.read_bytes()).hexdigest()
    assert told["file"] == {"name": "sure.onnx", "bytes": path.stat().st_size, "sha256": digest}
    metadata = told["metadata"]
    assert set(metadata) == set(session.metadata) - {"bensemble.sha256"}
    assert metadata["classes"] == list(CLASSES)
    assert metadata["bensemble.num_samples"] == 6
    assert {name: tuple(values) for name, values in metadata["bensemble.reference"].items()} == session.reference
    assert metadata["bensemble.calibration"]["temperature"] == calibration.temperature
    assert told["inputs"] == [{"name": "input", "dtype": "float32", "shape": ["batch", 4]}]
    assert [output["name"] for output in told["outputs"]] == list(session.outputs)
    assert all(output["meaning"] and output["dtype"] for output in told["outputs"])
    first = (tmp_path / "sure.onnx.json").read_bytes()
    write_calibrated(path)  # replaces both
    assert (tmp_path / "sure.onnx.json").read_bytes() == first


OPTIONS = {"outputs": "uncertainty", "num_samples": 2, "likelihood": "categorical"}


@pytest.mark.parametrize(
    "content", ["my own notes", '{"a": 1}', "[" * 100_000, "7"], ids=["text", "other", "deep", "number"]
)
def test_a_foreign_file_is_not_replaced(content, tmp_path):
    (tmp_path / "m.onnx.json").write_text(content)
    with pytest.raises(InvalidValueError, match=r"m.onnx.json' is not a sidecar of export_onnx, .*; move it"):
        export_onnx(model(), tmp_path / "m.onnx", torch.zeros(1, 4), **OPTIONS)
    assert (tmp_path / "m.onnx.json").read_text() == content
    assert not (tmp_path / "m.onnx").exists()


def test_a_file_of_means_has_no_sidecar(tmp_path):
    (tmp_path / "m.onnx.json").write_text("notes")
    export_onnx(nn.Linear(4, 3), tmp_path / "m.onnx", torch.zeros(1, 4))
    assert (tmp_path / "m.onnx.json").read_text() == "notes"


def test_a_failure_leaves_neither(tmp_path, monkeypatch):
    def failing(file, *rest):
        _pack(file, *rest)
        raise KeyboardInterrupt

    monkeypatch.setattr("convert.onnx.assembly._pack", failing)
    with pytest.raises(KeyboardInterrupt):
        export_onnx(model(), tmp_path / "m.onnx", torch.zeros(1, 4), **OPTIONS)
    assert not list(tmp_path.iterdir())
