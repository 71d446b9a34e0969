"""What the torch-free runtime refuses: inputs and files."""

import numpy as np
import onnx
import pytest
import torch
from onnx_models import TwoInputs

from convert import bayesify
from convert.onnx import export_onnx
from convert.runtime import UncertaintyFileError, UncertaintySession

pytestmark = pytest.mark.xdist_group("runtime refusals")  # its fixtures are made once


def zeros(*shape, dtype="float32"):
    return np.zeros(shape, dtype)


REFUSED = {
    "missing": ((zeros(2, 4),), {}, TypeError, "input 'table' is missing; the file takes image, table"),
    "unknown": ((), {"image": 1, "tables": 1, "table": 1}, TypeError, "input 'tables' is unknown; the file takes"),
    "twice": ((zeros(2, 4),), {"image": 1, "table": 1}, TypeError, "input 'image' is given twice; the file takes"),
    "too many": ((1, 2, 3), {}, TypeError, r"takes 2 inputs \(image, table\), got 3"),
    "dtype": ((zeros(2, 4, dtype="float64"), 1), {}, TypeError, "'image' must be a numpy array of float32, got an arr"),
    "no array": (([[1.0] * 4], 1), {}, TypeError, r"'image' must be a numpy array of float32, got list; use numpy.as"),
    "rank": ((zeros(4), zeros(2, 2)), {}, ValueError, r"'image' must have the shape \(batch, 4\) .*, got \(4,\)"),
    "shape": ((zeros(2, 5), zeros(2, 2)), {}, ValueError, r"'image' must have the shape \(batch, 4\) .*, got \(2, 5\)"),
    "empty": ((zeros(2, 4), zeros(0, 2)), {}, ValueError, "must agree in batch, got 0 and 2"),
    "batches": ((zeros(2, 4), zeros(3, 2)), {}, ValueError, "'table' and 'image' must agree in batch, got 3 and 2"),
}


@pytest.fixture(scope="module")
def two_inputs(tmp_path_factory):
    path = tmp_path_factory.mktemp("runtime") / "two.onnx"
    export_onnx(
        bayesify(TwoInputs()), path, (torch.randn(1, 4), torch.randn(1, 2)), outputs="uncertainty", num_samples=2
    )
    return UncertaintySession(path)


@pytest.mark.parametrize("case", REFUSED)
def test_wrong_inputs_are_refused(case, two_inputs):
    arrays, named, error, message = REFUSED[case]
    with pytest.raises(error, match=message):
        two_inputs(*arrays, **named)


def test_files_that_cannot_be_read_are_refused(calibrated, tmp_path):
    data = calibrated[1].read_bytes()
    with pytest.raises(FileNotFoundError, match=r"UncertaintySession: there is no file '.*none.onnx'; check the path"):
        UncertaintySession(tmp_path / "none.onnx")
    for name, content in (("cut", data[: len(data) // 2]), ("text", b"probs: 0.3"), ("empty", b"")):
        (tmp_path / name).write_bytes(content)
        with pytest.raises(UncertaintyFileError, match=f"'.*{name}' cannot be loaded as ONNX, it is damaged or someth"):
            UncertaintySession(tmp_path / name)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (None, "is ONNX without bensemble's metadata; write it with"),
        ({"bensemble.schema": "99"}, "must be of schema 1 or older, got '99'; update"),
        ({"bensemble.outputs": "mean"}, "must hold uncertainty, got a file of outputs='mean'; write it with"),
    ],
)
def test_files_with_other_metadata_are_refused(change, message, calibrated, tmp_path):
    proto = onnx.load(calibrated[1])
    stored = {entry.key: entry.value for entry in proto.metadata_props}
    onnx.helper.set_model_props(proto, {} if change is None else {**stored, **change})
    onnx.save(proto, tmp_path / "m.onnx")
    with pytest.raises(UncertaintyFileError, match=message):
        UncertaintySession(tmp_path / "m.onnx")
