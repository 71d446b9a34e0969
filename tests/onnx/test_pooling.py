"""Means of feature maps become poolings, where they would cost a copy and where they are the same."""

import numpy as np
import onnx
import pytest
import torch
from torch import nn

from bensemble import fit_novelty
from convert.onnx import export_onnx
from convert.onnx.files.pooling import pool_between_convolutions


def graph(axes, keepdims, again):
    """A convolution, and the mean of its output, which a rectifier reads too."""
    nodes = [
        onnx.helper.make_node("Conv", ["x", "w"], ["map"]),
        onnx.helper.make_node("ReduceMean", ["map", "axes"], ["mean"], "mean", keepdims=keepdims),
        onnx.helper.make_node("Relu", ["map" if again else "x"], ["rectified"]),
    ]
    weight = np.random.default_rng(0).standard_normal((4, 3, 2, 2)).astype(np.float32)
    constants = [onnx.numpy_helper.from_array(a, n) for a, n in ((weight, "w"), (np.array(axes), "axes"))]
    values = [
        onnx.helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in ("x", "mean", "rectified")
    ]
    made = onnx.helper.make_graph(nodes, "g", values[:1], values[1:], constants)
    return onnx.helper.make_model(made, opset_imports=[onnx.helper.make_opsetid("", 18)])


def answers(proto, x):
    return onnx.reference.ReferenceEvaluator(proto).run(["mean"], {"x": x})[0]


@pytest.mark.parametrize(
    ("axes", "keepdims", "again", "pooled"),
    [
        ([2, 3], 0, True, True),
        ([-1, -2], 0, True, True),
        ([2], 0, True, False),
        ([1, 2, 3], 0, True, False),
        ([2, 3], 1, True, False),
        ([2, 3], 0, False, False),  # the end of a network: nothing convolves behind it
    ],
)
def test_the_mean_of_a_map_that_goes_on(axes, keepdims, again, pooled):
    proto, x = graph(axes, keepdims, again), np.random.default_rng(1).standard_normal((2, 3, 5, 6)).astype(np.float32)
    before = answers(proto, x)
    pool_between_convolutions(proto)
    assert ("GlobalAveragePool" in {node.op_type for node in proto.graph.node}) == pooled
    np.testing.assert_allclose(answers(proto, x), before, rtol=1e-5)


@pytest.mark.slow
def test_novelty_pools_what_it_reads(tmp_path):
    net = nn.Sequential(
        nn.Conv2d(1, 4, 3), nn.BatchNorm2d(4), nn.ReLU(), nn.Conv2d(4, 4, 3), nn.AdaptiveAvgPool2d(1), nn.Flatten(),
        nn.Linear(4, 2),
    ).eval()  # fmt: skip
    x, y = torch.randn(60, 1, 8, 8), torch.arange(60) % 2
    novelty = fit_novelty(net, [(x[:30], y[:30])], [(x[30:], y[30:])])
    export_onnx(net, tmp_path / "a.onnx", x[:2], outputs="uncertainty", likelihood="categorical", novelty=novelty)
    graph = onnx.load(tmp_path / "a.onnx").graph
    kinds = [node.op_type for node in graph.node]
    assert kinds.count("GlobalAveragePool") == 2
    assert "BatchNormalization" not in kinds
    read = {name for node in graph.node for name in node.input}
    assert {tensor.name for tensor in graph.initializer} <= read  # ONNX Runtime warns of others
