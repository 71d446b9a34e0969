"""Weights and arrays that would run a program, hang, fill the memory or lie elsewhere."""

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
from safetensors.torch import save_file

from convert.archives import load_arrays
from convert.cli.labelled_data import read_data
from convert.weights.loading import load_with_notes

from .refusing import net, refused


class Runs:
    """Makes a folder when it is unpickled."""

    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return os.mkdir, (str(self.path),)


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
    loaded, notes = load_with_notes(net(), shards())
    assert notes == []
    assert all(bool((value == 1).all()) for value in loaded.state_dict().values())
    torch.save({"bias": torch.ones(3)}, tmp_path / "two.bin")
    loaded, _ = load_with_notes(net(), shards({"weight": "one.safetensors", "bias": "two.bin"}))
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
    refused(load_with_notes, net(), shards({"weight": name}), match="is not the name of a weights file in its folder")


def test_shards_that_are_not_there_or_not_the_right_ones(shards, tmp_path):
    refused(load_with_notes, net(), shards({"weight": "none.bin"}), match=r"none\.bin' cannot be read \(No such file")
    swapped = {"weight": "two.safetensors", "bias": "one.safetensors"}
    refused(
        load_with_notes,
        net(),
        shards(swapped),
        match=r"lists 'weight' in 'two\.safetensors', which holds no such tensor",
    )
    torch.save({"weight": 3, "bias": torch.ones(3)}, tmp_path / "one.bin")
    refused(
        load_with_notes,
        net(),
        shards({"weight": "one.bin", "bias": "one.bin"}),
        match=r"lists 'weight' in 'one\.bin', which holds no such tensor",
    )
    refused(load_with_notes, net(), shards({}), match="it has no weight_map")
    path = shards()
    path.write_text("{}")
    refused(load_with_notes, net(), path, match="it has no weight_map")
    path.write_text("[" * 100_000)
    refused(load_with_notes, net(), path, match="is not an index of weights")
    with path.open("wb") as file:
        file.truncate(65 * 2**20)
    refused(load_with_notes, net(), path, match=f"it has {65 * 2**20} bytes")


def test_links_and_pipes_among_shards_neither_hang_nor_recurse(shards, tmp_path):
    (tmp_path / "zero.bin").symlink_to("/dev/zero")
    refused(load_with_notes, net(), shards({"weight": "zero.bin"}), match="it is a folder, a device or a pipe")
    os.mkfifo(tmp_path / "pipe.bin")
    refused(load_with_notes, net(), shards({"weight": "pipe.bin"}), match="it is a folder, a device or a pipe")
    (tmp_path / "secret.bin").symlink_to("/etc/hostname")
    refused(load_with_notes, net(), shards({"weight": "secret.bin"}), match="is truncated or not a weights file")
    (tmp_path / "round.bin").symlink_to(tmp_path / "model.safetensors.index.json")
    refused(load_with_notes, net(), shards({"weight": "round.bin"}), match="is truncated or not a weights file")


@pytest.mark.parametrize("kind", ["weights.pt", "data.npz"])
def test_a_pipe_or_a_device_is_refused_at_once(kind, tmp_path):
    os.mkfifo(tmp_path / kind)
    (tmp_path / f"zero-{kind}").symlink_to("/dev/zero")
    for path in (tmp_path / kind, tmp_path / f"zero-{kind}"):
        if kind == "weights.pt":
            refused(load_with_notes, net(), path, match="it is a folder, a device or a pipe")
        else:
            refused(read_data, path, match="it is no file")


def test_a_program_in_a_shard_or_an_array_does_not_run(shards, tmp_path):
    trap = Runs(tmp_path / "ran")
    torch.save({"weight": trap}, tmp_path / "one.bin")
    refused(load_with_notes, net(), shards({"weight": "one.bin"}), match=r"holds a pickled 'posix\.mkdir'")
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
        refused(load_with_notes, net(), path, match=r"would unpack to 3145|is truncated or not")


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
