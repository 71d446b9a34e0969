"""Damage inside a format, behind its checksums and lengths: the file is well-formed and says something absurd."""

from __future__ import annotations

import io
import json
import random
import struct
import zipfile
from typing import Any

import numpy as np
import onnx

from .mutations import BYTES, EXTREMES, ODD_TEXTS, Mutation, damaged_json

__all__ = ["INSIDE"]


def safetensors_header(data: bytes, rng: random.Random) -> bytes:
    """Other names, shapes, dtypes and offsets of the tensors."""
    text, tensors = _split(data)
    return _joined(damaged_json(text, rng), tensors)


def bensemble_header(data: bytes, rng: random.Random) -> bytes:
    """Our own header, JSON inside the metadata."""
    text, tensors = _split(data)
    outer = json.loads(text)
    own = outer["__metadata__"]["bensemble"].encode()
    if rng.random() < 0.7:  # version 1 has no digest, so that what it says is looked at
        fields = json.loads(own)
        del fields["digest"]
        own = json.dumps({**fields, "version": 1}).encode()
    changed = damaged_json(own, rng) if rng.random() < 0.8 else rng.choice(list(BYTES.values()))(own, rng)
    outer["__metadata__"]["bensemble"] = changed.decode("utf-8", "replace")
    return _joined(json.dumps(outer).encode("utf-8", "replace"), tensors)


def weight_values(data: bytes, rng: random.Random) -> bytes:
    """NaN, infinity, denormal and huge numbers among the weights."""
    text, tensors = _split(data)
    changed = bytearray(tensors)
    for _ in range(rng.choice([1, 10, 1000])):
        value = rng.choice([np.nan, np.inf, -np.inf, 3e38, -3e38, 1e-45])
        at = 4 * rng.randrange(len(tensors) // 4)
        changed[at : at + 4] = struct.pack("<f", value)
    return _joined(text, bytes(changed))


def _split(data: bytes) -> tuple[bytes, bytes]:
    size = struct.unpack("<Q", data[:8])[0]
    return data[8 : 8 + size], data[8 + size :]


def _joined(text: bytes, tensors: bytes) -> bytes:
    return struct.pack("<Q", len(text)) + text + tensors


def zip_member(data: bytes, rng: random.Random) -> bytes:
    """A damaged member with a right checksum, or members lost, renamed, twice, compressed, added."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    at = rng.randrange(len(members))
    name, content = members[at]
    action = rng.choice(["content", "content", "content", "lose", "rename", "twice", "add"])
    if action == "content" and content:
        members[at] = (name, rng.choice(list(BYTES.values()))(content, rng))
    elif action == "lose":
        del members[at]
    elif action == "rename":
        members[at] = (rng.choice(ODD_TEXTS[3:9]), content)
    elif action == "twice":
        members.append((name, rng.choice(list(BYTES.values()))(content or b"1", rng)))
    elif action == "add":
        members.append((rng.choice(ODD_TEXTS[3:9]), rng.randbytes(64)))
    return _zipped(members, rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))


def array_header(data: bytes, rng: random.Random) -> bytes:
    """An .npy member of another shape, dtype, order or version than its bytes."""
    with zipfile.ZipFile(io.BytesIO(data)) as archive:
        members = [(info.filename, archive.read(info)) for info in archive.infolist()]
    at = rng.randrange(len(members))
    name, content = members[at]
    start = content.index(b"\n") + 1
    shape = rng.choice(
        [
            *("()", "(-1,)", "(0,)", "(1e9,)", "(2**40,)", "((1,),)", "(1," * 70 + ")" * 70, "(999999999999,)"),
            *("(65536, 65536)", "(1,) * 10**9", f"({rng.choice(EXTREMES)}, {rng.choice(EXTREMES)})"),
        ]
    )
    dtype = rng.choice(
        ["'<f4'", "'<f8'", "'|O'", "'<U100000'", "'<V999999999'", "'>c16'", "[('a', '<f4')]", "'<M8[s]'"]
    )
    header = f"{{'descr': {dtype}, 'fortran_order': {rng.choice(['True', 'False', '7'])}, 'shape': {shape}, }}"
    text = header.encode().ljust(rng.choice([118, 118, 118, 9_000, 60_000])) + b"\n"
    version = rng.choice([1, 1, 1, 2, 3, 9])
    size = struct.pack("<H" if version == 1 else "<I", len(text))
    members[at] = (name, b"\x93NUMPY" + bytes([version, 0]) + size + text + content[start:])
    return _zipped(members, rng.choice([zipfile.ZIP_STORED, zipfile.ZIP_DEFLATED]))


def _zipped(members: list[tuple[str, bytes]], compression: int) -> bytes:
    made = io.BytesIO()
    with zipfile.ZipFile(made, "w", compression) as archive:
        for name, content in members:
            archive.writestr(zipfile.ZipInfo(name or "x"), content, compression)
    return made.getvalue()


def graph_fields(data: bytes, rng: random.Random) -> bytes:
    """Fields of the ONNX graph: other types, sizes, names, attributes; nodes lost, twice, in another order."""
    proto = onnx.ModelProto.FromString(data)
    for _ in range(rng.choice([1, 1, 2, 5])):
        _change_field(rng.choice(list(_messages(proto))), rng)
    return proto.SerializeToString()


def graph_metadata(data: bytes, rng: random.Random) -> bytes:
    """The strings that the runtime reads."""
    proto = onnx.ModelProto.FromString(data)
    entry = rng.choice(proto.metadata_props)
    action = rng.choice(["odd", "odd", "json", "json", "number", "delete", "twice"])
    if action == "json" and entry.value[:1] in "{[":
        entry.value = damaged_json(entry.value.encode(), rng).decode("utf-8", "replace")
    elif action == "delete":
        proto.metadata_props.remove(entry)
    elif action == "twice":
        proto.metadata_props.add(key=entry.key, value=entry.value[::-1])
    elif action == "number":
        entry.value = str(rng.choice([-1, 0, 1, 99, *EXTREMES, "1" * 5000, "²", "1.5", "nan"]))
    else:
        entry.value = rng.choice(ODD_TEXTS).encode("utf-8", "replace").decode()
    return proto.SerializeToString()


def _messages(message: Any) -> Any:
    """A protobuf message and all in it."""
    yield message
    for field, value in message.ListFields():
        if field.message_type is not None:
            for one in value if _repeated(field) else [value]:
                yield from _messages(one)


def _change_field(message: Any, rng: random.Random) -> None:
    fields = [field for field, _ in message.ListFields()]
    if not fields:
        return
    field = rng.choice(fields)
    if _repeated(field):
        values = getattr(message, field.name)
        action = rng.choice(["lose", "twice", "reverse", "value"])
        if action == "lose":
            del values[rng.randrange(len(values))]
        elif action == "twice":
            values.append(values[rng.randrange(len(values))])
        elif action == "reverse":
            turned = list(values)[::-1]
            del values[:]
            values.extend(turned)
        elif field.message_type is None:
            values[rng.randrange(len(values))] = _scalar(field, rng)
    elif field.message_type is None:
        setattr(message, field.name, _scalar(field, rng))
    else:
        message.ClearField(field.name)


def _repeated(field: Any) -> bool:
    return bool(field.is_repeated)


def _scalar(field: Any, rng: random.Random) -> Any:
    if field.cpp_type == field.CPPTYPE_STRING:
        text = rng.choice(ODD_TEXTS).encode("utf-8", "replace")
        known = rng.choice(["Loop", "Expand", "Tile", "ConstantOfShape", "Reshape", "Conv", "Gemm", "Cast", "Resize"])
        return text if field.type == field.TYPE_BYTES else rng.choice([text.decode(), known, known])
    if field.cpp_type in (field.CPPTYPE_FLOAT, field.CPPTYPE_DOUBLE):
        return rng.choice([0.0, -1.0, 1e30, float("nan"), float("inf")])
    if field.cpp_type == field.CPPTYPE_ENUM:
        return rng.choice(list(field.enum_type.values_by_number))
    bits = 31 if field.cpp_type == field.CPPTYPE_INT32 else 63
    return rng.choice([rng.choice(EXTREMES) % 2**bits, -(rng.choice(EXTREMES) % 2**bits), rng.randrange(30)])


#: Damage inside each format, by the ending of the source file.
INSIDE: dict[str, dict[str, Mutation]] = {
    ".checkpoint": {"tensor header": safetensors_header, "own header": bensemble_header, "NaN and inf": weight_values},
    ".safetensors": {"tensor header": safetensors_header, "NaN and inf": weight_values},
    ".json": {"JSON values": damaged_json},
    ".pt": {"zip members": zip_member},
    ".legacy": {},
    ".npz": {"zip members": zip_member, "array header": array_header},
    ".onnx": {"graph fields": graph_fields, "metadata": graph_metadata},
}
