"""Files made to do harm: programs in pickles, bombs, paths that lead elsewhere, devices, things that never end."""

from __future__ import annotations

import io
import json
import os
import pickle
import struct
import zipfile

import numpy as np
import pytest
import torch
from convert.cli.weights import load_weights
from onnx import TensorProto, helper, numpy_helper
from safetensors.torch import save_file
from torch import nn

from bensemble.errors import CheckpointError, InvalidValueError
from convert.archives import load_arrays
from convert.cli.labelled_data import read_data
from convert.onnx import OnnxModel, inspect_onnx
from convert.runtime import Monitor, UncertaintyFileError, UncertaintySession


class Runs:
    """Makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


def refused(load, *arguments, match, error=(CheckpointError, InvalidValueError)):
    with pytest.raises(error, match=match) as caught:
        load(*arguments)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 1000


def net():
    return nn.Linear(4, 3)


@pytest.fixture
def shards(tmp_path):
    """A folder with a sharded checkpoint of ``net()``, and a function that writes its index."""
    save_file({"weight": torch.ones(3, 4)}, tmp_path / "one.safetensors")
    save_file({"bias": torch.ones(3)}, tmp_path / "two.safetensors")

    def index(weight_map=None, **more):
        files = {"weight": "one.safetensors", "bias": "two.safetensors"} if weight_map is None else weight_map
        path = tmp_path / "model.safetensors.index.json"
        path.write_text(json.dumps({"metadata": {}, "weight_map": files, **more}))
        return path

    return index


def test_shards_load_through_their_index(shards, tmp_path):
    loaded, notes = load_weights(net(), shards())
    assert notes == []
    assert all(bool((value == 1).all()) for value in loaded.state_dict().values())
    torch.save({"bias": torch.ones(3)}, tmp_path / "two.bin")
    loaded, _ = load_weights(net(), shards({"weight": "one.safetensors", "bias": "two.bin"}))
    assert all(bool((value == 1).all()) for value in loaded.state_dict().values())


@pytest.mark.parametrize(
    "name",
    [
        *("../one.safetensors", "/etc/passwd", "C:\\one.safetensors", "a/../one.safetensors", "..", "", 7, "x" * 300),
        *(".safetensors/../x.bin", "one\n.safetensors", "one\x00.safetensors", "\u202eone.safetensors"),
        "model.safetensors.index.json",
    ],
)
def test_a_shard_is_a_file_in_its_own_folder(name, shards, tmp_path):
    refused(load_weights, net(), shards({"weight": name}), match="is not the name of a weights file in its folder")


def test_shards_that_are_not_there_or_not_the_right_ones(shards, tmp_path):
    refused(load_weights, net(), shards({"weight": "none.bin"}), match=r"none\.bin' cannot be read \(No such file")
    swapped = {"weight": "two.safetensors", "bias": "one.safetensors"}
    refused(
        load_weights, net(), shards(swapped), match=r"lists 'weight' in 'two\.safetensors', which holds no such tensor"
    )
    torch.save({"weight": 3, "bias": torch.ones(3)}, tmp_path / "one.bin")
    refused(
        load_weights,
        net(),
        shards({"weight": "one.bin", "bias": "one.bin"}),
        match=r"lists 'weight' in 'one\.bin', which holds no such tensor",
    )
    refused(load_weights, net(), shards({}), match="it has no weight_map")
    path = shards()
    path.write_text("{}")
    refused(load_weights, net(), path, match="it has no weight_map")
    path.write_text("[" * 100_000)
    refused(load_weights, net(), path, match="is not an index of weights")
    with path.open("wb") as file:
        file.truncate(65 * 2**20)
    refused(load_weights, net(), path, match=f"it has {65 * 2**20} bytes")


def test_links_and_pipes_among_shards_neither_hang_nor_recurse(shards, tmp_path):
    (tmp_path / "zero.bin").symlink_to("/dev/zero")
    refused(load_weights, net(), shards({"weight": "zero.bin"}), match="it is a folder, a device or a pipe")
    os.mkfifo(tmp_path / "pipe.bin")
    refused(load_weights, net(), shards({"weight": "pipe.bin"}), match="it is a folder, a device or a pipe")
    (tmp_path / "secret.bin").symlink_to("/etc/hostname")
    refused(load_weights, net(), shards({"weight": "secret.bin"}), match="is truncated or not a weights file")
    (tmp_path / "round.bin").symlink_to(tmp_path / "model.safetensors.index.json")
    refused(load_weights, net(), shards({"weight": "round.bin"}), match="is truncated or not a weights file")


@pytest.mark.parametrize("kind", ["weights.pt", "data.npz"])
def test_a_pipe_or_a_device_is_refused_at_once(kind, tmp_path):
    os.mkfifo(tmp_path / kind)
    (tmp_path / f"zero-{kind}").symlink_to("/dev/zero")
    for path in (tmp_path / kind, tmp_path / f"zero-{kind}"):
        if kind == "weights.pt":
            refused(load_weights, net(), path, match="it is a folder, a device or a pipe")
        else:
            refused(read_data, path, match="it is no file")


def test_a_program_in_a_shard_or_an_array_does_not_run(shards, tmp_path):
    trap = Runs(tmp_path / "ran")
    torch.save({"weight": trap}, tmp_path / "one.bin")
    refused(load_weights, net(), shards({"weight": "one.bin"}), match=r"holds a pickled 'posix\.mkdir'")
    np.savez(tmp_path / "data.npz", x=np.array([trap], dtype=object))
    refused(read_data, tmp_path / "data.npz", match="'x' holds object, no numbers")
    with zipfile.ZipFile(tmp_path / "raw.npz", "w") as archive:
        archive.writestr("x.npy", pickle.dumps(trap))
    refused(read_data, tmp_path / "raw.npz", match="is not a file of numeric arrays")
    (tmp_path / "raw.npy").write_bytes(pickle.dumps(trap))
    refused(read_data, tmp_path / "raw.npy", match="is not a file of numeric arrays")
    assert not (tmp_path / "ran").exists()


def bomb(path, name, size):
    """An archive whose one member unpacks to ``size`` zeros, written in pieces."""
    with (
        zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED, compresslevel=9) as archive,
        archive.open(name, "w") as member,
    ):
        head = np.lib.format
        start = io.BytesIO()
        head.write_array_header_1_0(start, {"descr": "|u1", "fortran_order": False, "shape": (size,)})
        member.write(start.getvalue())
        for _ in range(size // 2**20):
            member.write(bytes(2**20))


@pytest.mark.parametrize("kind", ["weights.pt", "data.npz"])
@pytest.mark.slow
def test_an_archive_that_unpacks_to_a_thousand_times_its_size_is_refused(kind, tmp_path):
    path = tmp_path / kind
    bomb(path, "x.npy", 300 * 2**20)
    assert path.stat().st_size < 2**20
    if kind == "data.npz":
        refused(read_data, path, match="bytes would unpack to 3145")
    else:
        refused(load_weights, net(), path, match=r"would unpack to 3145|is truncated or not")


def test_compressed_data_of_the_usual_kind_loads(tmp_path):
    images = np.zeros((100, 28, 28), np.uint8)
    np.savez_compressed(tmp_path / "data.npz", inputs=images, labels=np.arange(100))
    assert images.nbytes > 50 * (tmp_path / "data.npz").stat().st_size
    assert np.array_equal(load_arrays(tmp_path / "data.npz")["inputs"], images)


@pytest.mark.parametrize(
    ("shape", "dtype", "match"),
    [
        *(("(1099511627776,)", "<f4", "of shape"), ("(-3,)", "<f4", "of shape"), ("(65536, 65536)", "<f8", "of shape")),
        *(("(3,)", "|O", "no numbers"), ("(3,)", "<U9", "no numbers"), ("(1,) * 9**9", "<f4", "not a file of")),
    ],
)
def test_an_array_must_have_the_bytes_that_its_header_promises(shape, dtype, match, tmp_path):
    header = f"{{'descr': '{dtype}', 'fortran_order': False, 'shape': {shape}}}".encode().ljust(117) + b"\n"
    with zipfile.ZipFile(tmp_path / "data.npz", "w") as archive:
        archive.writestr("x.npy", b"\x93NUMPY\x01\x00" + struct.pack("<H", len(header)) + header + bytes(12))
    refused(read_data, tmp_path / "data.npz", match=match)


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
        refused(load_weights, net(), path, match="is truncated or not a weights file")
    absurd = {"weight": {"dtype": "F32", "shape": [2**40, 2**40], "data_offsets": [0, 48]}}
    text = json.dumps(absurd).encode()
    path.write_bytes(struct.pack("<Q", len(text)) + text + bytes(48))
    refused(load_weights, net(), path, match="is truncated or not a weights file")


@pytest.mark.parametrize("value", [float("nan"), float("inf")])
def test_weights_that_are_no_numbers(value, tmp_path):
    path = tmp_path / "weights.safetensors"
    save_file({"weight": torch.full((3, 4), value), "bias": torch.ones(3)}, path)
    refused(load_weights, net(), path, match=r"'weight' in '.*' is not finite, got NaN or infinity .* go back to")
    norm = nn.BatchNorm1d(3)
    save_file({**norm.state_dict(), "running_var": torch.full((3,), value)}, path)
    load_weights(norm, path)  # a buffer may be infinite, as masks are


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
