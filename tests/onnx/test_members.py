"""The passes that put K networks into one graph and join their first layers, on graphs written by hand."""

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from bensemble.errors import ExportError
from convert.onnx.uncertainty.merging import merge_siblings
from convert.onnx.uncertainty.replication import replicate

rng = np.random.default_rng(0)


def graph(nodes, stored, inputs=(("x", ["batch", 4]),), outputs=("y",)) -> onnx.ModelProto:
    return helper.make_model(
        helper.make_graph(
            nodes,
            "test",
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, shape) for name, shape in inputs],
            [helper.make_tensor_value_info(name, TensorProto.FLOAT, None) for name in outputs],
            [numpy_helper.from_array(np.asarray(value, np.float32), name) for name, value in stored.items()],
        ),
        opset_imports=[helper.make_opsetid("", 20), helper.make_opsetid("bensemble", 1)],
        ir_version=10,
    )


def run(proto: onnx.ModelProto, x: np.ndarray) -> list[np.ndarray]:
    del proto.opset_import[1:]
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return session.run(None, {"x": x.astype(np.float32)})


def replicated(proto: onnx.ModelProto, draws) -> None:
    """Put K networks into a graph, whose draws are stored."""
    replicate(proto, tuple(draws))
    for name, values in draws.items():
        stored = [numpy_helper.from_array(np.asarray(w, np.float32), f"{name}.draw{k}") for k, w in enumerate(values)]
        proto.graph.initializer.extend(stored)


def marker(value: str, result: str, count: int, index: int = 0) -> onnx.NodeProto:
    return helper.make_node("Members", [value], [result], result, domain="bensemble", count=count, index=index)


def test_drawn_nodes_are_copied_and_the_trunk_is_shared():
    trunk, weights = rng.normal(size=(4, 3)), [rng.normal(size=(3, 2)) for _ in range(3)]
    nodes = [
        helper.make_node("MatMul", ["x", "trunk"], ["h"], "trunk"),
        helper.make_node("MatMul", ["h", "head"], ["z"], "head"),
        marker("z", "y", 3),
    ]
    proto = graph(nodes, {"trunk": trunk, "head": weights[0]})
    replicated(proto, {"head": weights, "absent": []})
    x = rng.normal(size=(5, 4))
    (found,) = run(proto, x)
    np.testing.assert_allclose(found, np.stack([x @ trunk @ w for w in weights]), rtol=1e-4, atol=1e-5)
    operators = [node.op_type for node in proto.graph.node]
    assert operators.count("MatMul") == 1 + 3


def test_each_marker_has_its_own_copies():
    """Two networks of an ensemble, one of them with a weight that both read."""
    shared, own = rng.normal(size=(4, 3)), rng.normal(size=(3, 3))
    nodes = [
        helper.make_node("MatMul", ["x", "shared"], ["h"], "h"),
        helper.make_node("MatMul", ["h", "own"], ["z"], "z"),
        marker("h", "first", 2),
        marker("z", "second", 2, 1),
        helper.make_node("Concat", ["first", "second"], ["y"], "y", axis=0),
    ]
    draws = {"shared": [shared, 2 * shared], "own": [own, 3 * own]}
    proto = graph(nodes, {name: values[0] for name, values in draws.items()})
    replicated(proto, draws)
    x = rng.normal(size=(5, 4))
    (found,) = run(proto, x)
    h = x @ shared
    np.testing.assert_allclose(found, np.stack([h, 2 * h, h @ own, 6 * h @ own]), rtol=1e-4, atol=1e-5)


def test_branches_that_read_a_drawn_value_are_copied_too():
    """The body of an If reads a value from outside."""
    body = helper.make_graph(
        [helper.make_node("Mul", ["h", "h"], ["square"], "square")],
        "then",
        [],
        [helper.make_tensor_value_info("square", TensorProto.FLOAT, None)],
    )
    other = helper.make_graph(
        [helper.make_node("Neg", ["h"], ["negative"], "negative")],
        "else",
        [],
        [helper.make_tensor_value_info("negative", TensorProto.FLOAT, None)],
    )
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], "h"),
        helper.make_node("ReduceSum", ["x"], ["sum"], "sum", keepdims=0),
        helper.make_node("Greater", ["sum", "zero"], ["positive"], "positive"),
        helper.make_node("If", ["positive"], ["z"], "if", then_branch=body, else_branch=other),
        marker("z", "y", 2),
    ]
    weights = [rng.normal(size=(4, 3)) for _ in range(2)]
    proto = graph(nodes, {"w": weights[0], "zero": 0.0})
    replicated(proto, {"w": weights})
    for x in (np.ones((2, 4)), -np.ones((2, 4))):
        h = np.stack([x @ w for w in weights])
        np.testing.assert_allclose(run(proto, x)[0], h * h if x[0, 0] > 0 else -h, rtol=1e-4, atol=1e-5)


def test_a_posterior_that_does_not_reach_the_output_is_refused():
    nodes = [helper.make_node("Neg", ["x"], ["h"], "h"), marker("h", "y", 2)]
    with pytest.raises(ExportError, match="needs a posterior that reaches the output, got an output that depends on n"):
        replicate(graph(nodes, {"w": [1.0]}), ("w",))


def count(proto: onnx.ModelProto, operator: str) -> int:
    return sum(node.op_type == operator for node in proto.graph.node)


def test_products_of_one_input_become_one_with_what_follows_them():
    """MatMul with a bias, then an activation, then different weights, which stay apart."""
    first, bias = [rng.normal(size=(4, 3)) for _ in range(3)], [rng.normal(size=3) for _ in range(3)]
    second = [rng.normal(size=(3, 2)) for _ in range(3)]
    nodes, stored = [], {}
    for k in range(3):
        stored |= {f"a{k}": first[k], f"b{k}": bias[k], f"c{k}": second[k]}
        nodes += [
            helper.make_node("MatMul", ["x", f"a{k}"], [f"h{k}"], f"h{k}"),
            helper.make_node("Add", [f"b{k}", f"h{k}"] if k else [f"h{k}", f"b{k}"], [f"i{k}"], f"i{k}"),
            helper.make_node("Tanh", [f"i{k}"], [f"j{k}"], f"j{k}"),
            helper.make_node("MatMul", [f"j{k}", f"c{k}"], [f"y{k}"], f"y{k}"),
        ]
    proto = graph(nodes, stored, outputs=("y0", "y1", "y2"))
    merge_siblings(proto)
    assert [count(proto, name) for name in ("MatMul", "Add", "Tanh", "Split")] == [4, 1, 1, 1]
    x = rng.normal(size=(5, 4))
    for found, *weights in zip(run(proto, x), first, bias, second, strict=True):
        np.testing.assert_allclose(found, np.tanh(x @ weights[0] + weights[1]) @ weights[2], rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("transposed", [0, 1])
def test_gemm_and_what_may_not_move(transposed):
    """Activations that differ, a part that is an output, and a sum over the outputs stay behind the split."""
    weights = [rng.normal(size=(3, 4) if transposed else (4, 3)) for _ in range(2)]
    bias = [rng.normal(size=3) for _ in range(2)]
    nodes = [
        helper.make_node("Gemm", ["x", "w0", "b0"], ["h0"], "h0", transB=transposed),
        helper.make_node("Gemm", ["x", "w1", "b1"], ["h1"], "h1", transB=transposed),
        helper.make_node("Softmax", ["h0"], ["y0"], "y0", axis=1),
        helper.make_node("Softmax", ["h1"], ["y1"], "y1", axis=1),
    ]
    proto = graph(nodes, {"w0": weights[0], "w1": weights[1], "b0": bias[0], "b1": bias[1]}, outputs=("y0", "y1", "h1"))
    merge_siblings(proto)
    assert [count(proto, name) for name in ("Gemm", "Softmax", "Split")] == [1, 2, 1]
    x = rng.normal(size=(5, 4))
    found = run(proto, x)
    for k in range(2):
        logits = x @ (weights[k].T if transposed else weights[k]) + bias[k]
        exact = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
        np.testing.assert_allclose(found[k], exact, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found[2], logits, rtol=1e-4, atol=1e-5)


def test_convolutions_become_one_with_activation_and_pooling():
    weights, bias = [rng.normal(size=(2, 3, 3, 3)) for _ in range(3)], [rng.normal(size=2) for _ in range(3)]
    nodes, stored = [], {}
    for k in range(3):
        stored |= {f"w{k}": weights[k], f"b{k}": bias[k]}
        nodes += [
            helper.make_node("Conv", ["x", f"w{k}", f"b{k}"], [f"c{k}"], f"c{k}", pads=[1] * 4),
            helper.make_node("Relu", [f"c{k}"], [f"r{k}"], f"r{k}"),
            helper.make_node("MaxPool", [f"r{k}"], [f"y{k}"], f"y{k}", kernel_shape=[2, 2], strides=[2, 2]),
        ]
    outputs, inputs = ("y0", "y1", "y2"), (("x", ["batch", 3, 6, 6]),)
    apart, joint = (graph(nodes, stored, inputs, outputs) for _ in range(2))
    merge_siblings(joint)
    assert [count(joint, name) for name in ("Conv", "Relu", "MaxPool", "Split")] == [1, 1, 1, 1]
    x = rng.normal(size=(2, 3, 6, 6))
    for one, other in zip(run(apart, x), run(joint, x), strict=True):
        np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-5)


def test_grouped_convolutions_and_weights_that_others_read_stay():
    stored = {"w0": rng.normal(size=(3, 1, 1, 1)), "w1": rng.normal(size=(3, 1, 1, 1))}
    nodes = [
        helper.make_node("Conv", ["x", "w0"], ["y0"], "y0", group=3),
        helper.make_node("Conv", ["x", "w1"], ["y1"], "y1", group=3),
    ]
    proto = graph(nodes, stored, (("x", ["batch", 3, 6, 6]),), ("y0", "y1"))
    merge_siblings(proto)
    assert [count(proto, name) for name in ("Conv", "Split")] == [2, 0]
    read_twice = [
        helper.make_node("MatMul", ["x", "w0"], ["y0"], "y0"),
        helper.make_node("MatMul", ["x", "w1"], ["y1"], "y1"),
        helper.make_node("Neg", ["w0"], ["y2"], "y2"),
    ]
    proto = graph(read_twice, {name: np.ones((4, 2)) for name in ("w0", "w1")}, outputs=("y0", "y1", "y2"))
    merge_siblings(proto)
    assert [count(proto, name) for name in ("MatMul", "Split")] == [2, 0]
