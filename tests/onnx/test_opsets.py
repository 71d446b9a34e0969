"""Files travel: the lowest operator set that a graph needs, and no sizes of inner values."""

import onnx
import pytest
import torch
from onnx import TensorProto, helper
from torch import nn

from convert.onnx import export_onnx
from convert.onnx.opsets import lower_opset


def graph(kind, opset=20, rank=2, **attributes):
    value = helper.make_tensor_value_info("x", TensorProto.FLOAT, ["batch", *[4] * (rank - 1)])
    result = helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * rank)
    body = helper.make_graph([helper.make_node(kind, ["x"], ["y"], **attributes)], "g", [value], [result])
    return helper.make_model(body, opset_imports=[helper.make_opsetid("", opset)])


@pytest.mark.parametrize(
    ("kind", "opset", "lowest", "attributes"),
    [
        ("Relu", 20, 18, {}),
        ("Relu", 17, 17, {}),  # as it was: never raised
        ("Flatten", 21, 18, {}),
        ("Identity", 21, 18, {}),
        ("Gelu", 20, 20, {}),  # new there
        ("AveragePool", 20, 19, {"rank": 4, "kernel_shape": [2, 2], "dilations": [1, 1]}),  # dilations are of 19
    ],
)
def test_the_lowest_operator_set_that_means_the_same(kind, opset, lowest, attributes):
    proto = graph(kind, opset, **attributes)
    lower_opset(proto)
    assert proto.opset_import[0].version == lowest


@pytest.mark.slow
def test_an_export_takes_the_lowest_and_keeps_the_one_asked_for(tmp_path):
    net, x = nn.Sequential(nn.Linear(4, 3), nn.ReLU()).eval(), torch.randn(1, 4)
    assert export_onnx(net, tmp_path / "m.onnx", x).opset == 18
    assert onnx.load(tmp_path / "m.onnx").ir_version == 8
    assert export_onnx(net, tmp_path / "m.onnx", x, opset=20).opset == 20
    assert export_onnx(nn.Sequential(net, nn.GELU()).eval(), tmp_path / "m.onnx", x).opset == 20


@pytest.mark.slow
def test_an_int8_file_holds_no_sizes_of_inner_values(tmp_path):
    net = nn.Sequential(nn.Conv2d(1, 4, 3), nn.ReLU(), nn.Flatten(), nn.Linear(144, 3)).eval()
    typical = torch.randn(9, 1, 8, 8)
    export_onnx(net, tmp_path / "m.onnx", typical[:1], quantize="int8", calibration_data=typical)
    assert not onnx.load(tmp_path / "m.onnx").graph.value_info
