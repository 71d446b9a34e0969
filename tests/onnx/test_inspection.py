"""Reading ONNX files of any origin, and comparing outputs."""

import gzip

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from bensemble.errors import InvalidTypeError, InvalidValueError, VerificationError
from convert.onnx import inspect_onnx
from convert.onnx.inputs.trials import Trial
from convert.onnx.verification import compare


def by_hand(weight, sparse=(), opset=17):
    """A file that no part of the toolkit wrote: y = x @ weight, and other tensors that count or do not count."""
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["y"]),
        helper.make_node("Constant", [], ["unused"], value=numpy_helper.from_array(np.float32([1, 0]))),
        helper.make_node("Constant", [], ["scalar"], value=numpy_helper.from_array(np.float32(3))),
        helper.make_node("Constant", [], ["shape"], value=numpy_helper.from_array(np.int64([1, 0, 2]))),
    ]
    inputs = [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["n", weight.shape[0]])]
    outputs = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["n", weight.shape[1]])]
    graph = helper.make_graph(nodes, "g", inputs, outputs, [numpy_helper.from_array(weight, "w")])
    graph.sparse_initializer.extend(sparse)
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)])
    helper.set_model_props(model, {"author": "me"})
    return model


def test_a_file_from_elsewhere(tmp_path):
    values = helper.make_tensor("s", TensorProto.FLOAT, [2], [1.0, 2.0])
    where = helper.make_tensor("s_at", TensorProto.INT64, [2], [3, 5])
    weight = np.float32([[1, 0, 2], [0, 0, 3]])
    file = tmp_path / "hand.onnx"
    onnx.save(by_hand(weight, [helper.make_sparse_tensor(values, where, [10])]), file)
    summary = inspect_onnx(str(file))
    assert (summary.parameters, summary.zeros) == (6 + 2 + 10, 3 + 1 + 8)
    assert summary.sparsity == pytest.approx(12 / 18)
    assert [str(entry) for entry in (*summary.inputs, *summary.outputs)] == ["x: float32[n, 2]", "y: float32[n, 3]"]
    assert summary.opset == 17
    assert summary.operators == {"Constant": 3, "MatMul": 1}
    assert summary.metadata == {"author": "me"}
    assert summary.size == file.stat().st_size
    assert summary.gzip_size == len(gzip.compress(file.read_bytes(), 6))
    assert "author = me" in str(summary)


def test_weights_beside_the_file_count(tmp_path):
    weight = np.random.default_rng(0).normal(size=(64, 32)).astype(np.float32)
    file = tmp_path / "hand.onnx"
    onnx.save(by_hand(weight), file, save_as_external_data=True, location="hand.bin", size_threshold=0)
    summary = inspect_onnx(file)
    assert summary.size == file.stat().st_size + (tmp_path / "hand.bin").stat().st_size
    assert summary.parameters == weight.size + 2
    (tmp_path / "hand.bin").unlink()
    with pytest.raises(InvalidValueError, match=r"keeps weights in 'hand.bin', which cannot be read; put the files"):
        inspect_onnx(file)


@pytest.mark.parametrize("content", [b"", b"hello", b"\x08\x07", bytes(range(256)), b"PK\x03\x04" + bytes(50)])
def test_other_files_are_refused_in_one_line(tmp_path, content):
    file = tmp_path / "other.onnx"
    file.write_bytes(content)
    with pytest.raises(
        InvalidValueError, match=f"'.*other.onnx' is not an ONNX file, got {len(content)} bytes"
    ) as caught:
        inspect_onnx(file)
    assert "\n" not in str(caught.value)


def test_paths_that_cannot_be_read_are_refused(tmp_path):
    with pytest.raises(InvalidValueError, match=r"'.*none.onnx' cannot be read, No such file or directory; check"):
        inspect_onnx(tmp_path / "none.onnx")
    with pytest.raises(InvalidValueError, match="cannot be read, Is a directory"):
        inspect_onnx(tmp_path)
    with pytest.raises(InvalidTypeError, match="path must be a string or a Path, got int"):
        inspect_onnx(3)


class Fixed:
    """A session that always answers the same."""

    def __init__(self, *answers):
        self.answers = answers

    def get_inputs(self):
        return []

    def run(self, names, feed):
        return list(self.answers)


def agreement(expected, got, bound=1e-5):
    return compare(Fixed(np.asarray(got)), [Trial((), {"out": expected}, {"batch": 2})], ["y"], bound)


def test_errors_are_the_largest_over_entries():
    found = agreement(torch.tensor([2.0, -4.0]), np.float32([2.0, -4.00002]))
    assert found.max_error == pytest.approx(2e-5, rel=0.03)
    assert found.relative_error == pytest.approx(5e-6, rel=0.03)


@pytest.mark.parametrize(
    ("expected", "got", "message"),
    [
        (
            [2.0, -4.0],
            np.float32([2.0, -4.001]),
            r"'y' .* by 1.00e-03, 2.5e-04 of its .* \(allowed 1e-05\), at batch 2",
        ),
        ([1.0, float("nan")], np.float32([1.0, 2.0]), "'y' .* not equal"),
        ([1.0, 2.0], np.float32([1.0, np.nan]), "'y' .* not equal"),
        ([1.0, float("inf")], np.float32([1.0, -np.inf]), "'y' .* not equal"),
        ([0.0, 0.0], np.float32([0.0, 1e-9]), "'y' .* by 1.00e-09, not equal"),
        ([3, 4], np.int64([3, 5]), "'y' .* by 1.00e[+]00, not equal"),
        ([True, False], np.array([True, True]), "'y' .* not equal"),
        ([1.0, 2.0], np.float32([[1.0, 2.0]]), r"'y' of the file is float32\[1, 2\] and of the model float32\[2\]"),
        ([1.0, 2.0], np.float64([1.0, 2.0]), r"is float64\[2\] and of the model float32\[2\]"),
    ],
)
def test_differences_are_refused(expected, got, message):
    with pytest.raises(VerificationError, match=message):
        agreement(torch.tensor(expected), got)


def test_infinities_in_the_same_places_agree():
    expected = torch.tensor([1.0, float("-inf"), float("nan")])
    assert agreement(expected, expected.numpy()).max_error == 0.0
