"""Graphs, their weights beside them, and headers that ask for too much."""

from __future__ import annotations

import json
import os
import struct

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save_file
from torch import nn

from convert.onnx import OnnxModel, inspect_onnx
from convert.runtime import Monitor, UncertaintyFileError, UncertaintySession
from convert.weights.loading import load_with_notes

from .refusing import net, refused


def graph(weight, nodes=(), opset=17):
    """A file that no part of the toolkit wrote: y = x @ weight."""
    nodes = [*nodes, helper.make_node("MatMul", ["x", "w"], ["y"])]
    ends = [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["n", size]) for name, size in (("x", 3), ("y", 2))]
    made = helper.make_graph(nodes, "g", ends[:1], ends[1:], [weight])
    return helper.make_model(made, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)


def external(location, **more):
    weight = numpy_helper.from_array(np.ones((3, 2), np.float32), "w")
    weight.ClearField("raw_data")
    weight.data_location = TensorProto.EXTERNAL
    for key, value in (location if isinstance(location, list) else [("location", location)]) + list(more.items()):
        weight.external_data.add(key=key, value=str(value))
    return graph(weight)


@pytest.mark.parametrize(
    "location",
    [
        *("../secret", "/etc/hostname", "sub/../../secret", "/dev/zero", "link", "pipe", "", "none"),
        [("location", "/dev/zero"), ("location", "fine")],
    ],
)
def test_weights_beside_a_graph_may_not_lie_elsewhere(location, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(np.ones(6, np.float32).tobytes())
    (folder / "fine").write_bytes(np.ones(6, np.float32).tobytes())
    (folder / "link").symlink_to(tmp_path / "secret")
    os.mkfifo(folder / "pipe")
    (folder / "net.onnx").write_bytes(external(location).SerializeToString())
    refused(inspect_onnx, folder / "net.onnx", match="keeps weights in .* cannot be read; put the files beside it")


@pytest.mark.parametrize("location", ["../secret", "/etc/hostname", "link", "none"])
def test_no_file_elsewhere_becomes_a_weight_when_a_file_runs(location, tmp_path):
    folder = tmp_path / "folder"
    folder.mkdir()
    (tmp_path / "secret").write_bytes(np.ones(6, np.float32).tobytes())
    (folder / "link").symlink_to(tmp_path / "secret")
    (folder / "net.onnx").write_bytes(external(location).SerializeToString())
    refused(OnnxModel, folder / "net.onnx", match="ONNX Runtime cannot load")
    refused(UncertaintySession, folder / "net.onnx", match="cannot be loaded as ONNX", error=UncertaintyFileError)


def varint(number):
    """A length as protobuf writes it."""
    return bytes([number]) if number < 128 else bytes([number % 128 + 128]) + varint(number // 128)


@pytest.mark.parametrize("load", [inspect_onnx, OnnxModel])
def test_an_onnx_file_is_no_pipe(load, tmp_path):
    os.mkfifo(tmp_path / "net.onnx")
    refused(load, tmp_path / "net.onnx", match="is a device or a pipe|there is no such file")


def test_graphs_that_are_deep_large_or_new(tmp_path):
    path = tmp_path / "net.onnx"
    payload = b""
    for _ in range(1000):  # a branch in a branch in a branch: graph.node.attribute.g
        for tag in (b"\x32", b"\x2a", b"\x0a"):
            payload = tag + varint(len(payload)) + payload
    fine = graph(numpy_helper.from_array(np.ones((3, 2), np.float32), "w")).SerializeToString()
    path.write_bytes(fine + b"\x3a" + varint(len(payload)) + payload)
    refused(inspect_onnx, path, match="is not an ONNX file")
    refused(OnnxModel, path, match="cannot load")
    huge = graph(numpy_helper.from_array(np.ones((3, 2), np.float32), "w"))
    huge.graph.initializer[0].dims[:] = [2**31, 2**31]
    path.write_bytes(huge.SerializeToString())
    refused(inspect_onnx, path, match=r"the weights in '.*' are damaged")
    refused(OnnxModel, path, match="cannot load")
    newer = graph(numpy_helper.from_array(np.ones((3, 2), np.float32), "w"), opset=999)
    path.write_bytes(newer.SerializeToString())
    refused(OnnxModel, path, match="cannot load")


def test_safetensors_headers_that_ask_for_everything(tmp_path):
    path = tmp_path / "weights.safetensors"
    for size, text in ((2**63 - 1, b"{}"), (2**27, b"{}"), (200_000, b"[" * 200_000), (9, b'{"a":1}\xff ')):
        path.write_bytes(struct.pack("<Q", size) + text)
        refused(load_with_notes, net(), path, match="is truncated or not a weights file")
    absurd = {"weight": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 48]}}
    text = json.dumps(absurd).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(48))
    refused(load_with_notes, net(), path, match="is truncated or not a weights file")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers(value, tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file({"weight": torch.full((3, 4), value), "bias": torch.ones(3)}, path)
    refused(load_with_notes, net(), path, match=r"'weight' in '.*' is not finite, got NaN or infinity .* go back to")
    norm = nn.BatchNorm1d(3)
    save_file({**norm.state_dict(), "running_var": torch.full((3,), value)}, path)
    load_with_notes(norm, path)  # a buffer may be infinite, as masks are


@pytest.mark.parametrize(
    ("change", "match"),
    [
        (lambda state: state.pop("bins"), "'bins'"),
        (lambda state: state.update(bins={}), "no bins"),
        (lambda state: state["bins"].update(entropy=[[1.0], [2.0]]), "bins"),
        (lambda state: state["bins"].update(entropy=[[float("nan")] * 12, [1.0] * 13]), "bins"),
        (lambda state: state["lives"]["a"].update(counts=[[[-1] * 13]]), "counts"),
        (lambda state: state["lives"]["a"].update(counts=[[["1e9"] * 13]]), r"invalid literal|counts"),
        (lambda state: state["lives"]["a"].update(counts=[]), "counts"),
        (lambda state: state["lives"]["a"].update(rows=[[1, 2]]), "rows"),
        (lambda state: state["lives"]["a"].update(rows=[[0, 10**400]]), "rows"),
        (lambda state: state["lives"]["a"].update(open=10**6), "rows"),
        (lambda state: state.update(lives=[1]), "items"),
        (lambda state: state.update(window=0), "window must be"),
        (lambda state: state.update(false_alarm_rate=2.0), "false_alarm_rate"),
        (lambda state: state.update(false_alarm_rate="0.1"), "false_alarm_rate"),
    ],
)
def test_the_state_of_a_monitor_is_checked_field_by_field(change, match):
    bins = {"entropy": [[k / 10 for k in range(12)], [1.0] * 13]}
    lives = {"a": {"first": 0, "rows": [[0, 1]], "counts": [[[1] * 13]], "open": 5}}
    state = {"version": 2, "false_alarm_rate": 0.01, "window": 10, "own": "a", "lives": lives, "bins": bins}
    assert Monitor.from_json(json.dumps(state)).seen == 13
    change(state)
    refused(Monitor.from_json, json.dumps(state), match=match, error=ValueError)
    refused(Monitor.from_json, "[" * 100_000, match="from_json: text must be what", error=ValueError)
