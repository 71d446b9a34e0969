"""Norms behind convolutions whose means are read: folded where that is exact, left where digits would be lost."""

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from convert.onnx.files.norms import fold_norms
from convert.onnx.files.proto import drop_unused_constants

X = np.random.default_rng(1).standard_normal((2, 4, 5, 6)).astype(np.float32)


def graph(bias=False, groups=1, gamma=(0.5, -2.0, 1.5, 3.0), epsilon=1e-3, extra=(), outputs=("mean", "rectified")):
    """A convolution, the mean of its output, and a norm and a rectifier behind it."""
    random = np.random.default_rng(0)
    shapes = {"weight": (4, 4 // groups, 2, 2), "bias": (4,), "beta": (4,), "average": (4,), "variance": (4,)}
    constants = {name: random.uniform(0.2, 2.0, shape).astype(np.float32) for name, shape in shapes.items()}
    constants["gamma"] = np.array(gamma, dtype=np.float32)
    norm = ["map", "gamma", "beta", "average", "variance"]
    nodes = [
        helper.make_node("Conv", ["x", "weight", *["bias"] * bias], ["map"], "conv", group=groups),
        helper.make_node("GlobalAveragePool", ["map"], ["pooled"], "pool"),
        helper.make_node("Flatten", ["pooled"], ["mean"], "flat", axis=1),
        helper.make_node("BatchNormalization", norm, ["normed"], "norm", epsilon=epsilon),
        helper.make_node("Relu", ["normed"], ["rectified"], "relu"),
        *extra,
    ]
    values = [helper.make_tensor_value_info(name, onnx.TensorProto.FLOAT, None) for name in ("x", *outputs)]
    tensors = [numpy_helper.from_array(array, name) for name, array in constants.items() if bias or name != "bias"]
    made = helper.make_graph(nodes, "g", values[:1], values[1:], tensors)
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", 18)])


def folded(proto):
    """Fold, compare all outputs before and after, and say whether the norm is gone."""
    run = [onnx.reference.ReferenceEvaluator(proto).run(None, {"x": X})]
    fold_norms(proto)
    drop_unused_constants(proto)
    run.append(onnx.reference.ReferenceEvaluator(proto).run(None, {"x": X}))
    for before, after in zip(*run, strict=True):
        np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-5)
    return "norm" not in {node.name for node in proto.graph.node}


@pytest.mark.parametrize("options", [{}, {"bias": True}, {"groups": 2}, {"bias": True, "groups": 4, "epsilon": 1e-5}])
def test_the_norm_is_folded_and_the_mean_computed_back(options):
    proto = graph(**options)
    assert folded(proto)
    names = {tensor.name for tensor in proto.graph.initializer}
    assert not names & {"weight", "bias", "gamma", "beta", "average", "variance"}
    assert [node.op_type for node in proto.graph.node] == ["Conv", "GlobalAveragePool", "Flatten", "Mul", "Add", "Relu"]


def test_a_weight_that_another_convolution_reads_stays():
    again = helper.make_node("Conv", ["x", "weight"], ["other"], "again")
    proto = graph(extra=[again], outputs=("mean", "rectified", "other"))
    assert folded(proto)
    assert "weight" in {tensor.name for tensor in proto.graph.initializer}


@pytest.mark.parametrize(
    "options",
    [
        {"gamma": (0.5, 0.0, 1.5, 3.0)},  # nothing comes back from a channel without scale
        {"gamma": (0.5, 1e-4, 1.5, 3.0)},  # and hardly a digit from one with little
        {"gamma": (0.5, 0.05, 1.5, 3.0)},  # nor, after a rounding to eight bits, from one with less than the others
        {"extra": [helper.make_node("Neg", ["map"], ["other"], "neg")], "outputs": ("mean", "rectified", "other")},
        {"outputs": ("mean", "rectified", "map")},
    ],
)
def test_where_it_would_not_be_exact_the_norm_stays(options):
    proto = graph(**options)
    assert not folded(proto)
