"""Seeded damage to bytes and to JSON: what broken disks, broken transfers and strangers do to files.

Every mutation takes the bytes and a ``random.Random``, so that a case is named by its seed and can be made again.
"""

from __future__ import annotations

import json
import random
from collections.abc import Callable
from typing import Any

__all__ = ["BYTES", "Mutation", "damaged_json"]

Mutation = Callable[[bytes, random.Random], bytes]

#: Numbers that overflow, underflow, or ask for more than there is.
EXTREMES = (0, 1, 2, 127, 128, 255, 2**15, 2**16 - 1, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**62, 2**63 - 1, 2**64 - 1)

#: Text that is no name: other encodings, control characters, paths that lead elsewhere, very long.
ODD_TEXTS = (
    *(
        "",
        "\x00",
        "a\nb",
        "\x1b[2J\x1b[31m",
        "\u202e",
        "../../etc/passwd",
        "/etc/passwd",
        "C:\\x",
        "~/x",
        "a" * 100_000,
    ),
    *("NaN", "__class__", "__import__('os').system('true')", "{}", "${HOME}", "\ud800", "\U0001f600" * 1000),
)


def truncate(data: bytes, rng: random.Random) -> bytes:
    """Cut at any byte, more often near one of the two ends."""
    size = len(data)
    return data[: rng.choice([rng.randrange(size), rng.randrange(min(size, 200)), size - 1 - rng.randrange(200)])]


def flip(data: bytes, rng: random.Random) -> bytes:
    """One to eight flipped bits, half of the time in the first 512 bytes, where headers are."""
    changed = bytearray(data)
    for _ in range(rng.choice([1, 1, 1, 2, 8])):
        changed[_place(data, rng)] ^= 1 << rng.randrange(8)
    return bytes(changed)


def overwrite(data: bytes, rng: random.Random) -> bytes:
    """A run of other bytes: zeros, ones, noise, or text that is not UTF-8."""
    at, size = _place(data, rng), rng.choice([1, 2, 4, 8, 64, 512])
    fill = rng.choice([b"\x00" * size, b"\xff" * size, rng.randbytes(size), b"\xc3\x28\xed\xa0" * (size // 4 + 1)])
    return data[:at] + fill[:size] + data[at + size :]


def splice(data: bytes, rng: random.Random) -> bytes:
    """A range is lost, comes twice, or stands elsewhere."""
    at, size = _place(data, rng), rng.choice([1, 3, 8, 100, 1000])
    piece, rest = data[at : at + size], data[:at] + data[at + size :]
    where = rng.randrange(len(rest) + 1)
    return rng.choice([rest, data[:at] + piece + data[at:], rest[:where] + piece + rest[where:]])


def insert(data: bytes, rng: random.Random) -> bytes:
    """Bytes that were not there, also before the first and after the last."""
    at = rng.choice([0, len(data), _place(data, rng)])
    return data[:at] + rng.choice([b"\x00", b"\xff" * 8, rng.randbytes(64), b"[" * 5000, b"\x80" * 2000]) + data[at:]


def lengths(data: bytes, rng: random.Random) -> bytes:
    """A number of 1 to 8 bytes somewhere becomes extreme, or wrong by one: the first eight bytes often."""
    size = rng.choice([1, 2, 4, 8])
    at = rng.choice([0, _place(data, rng), _place(data, rng)])
    old = int.from_bytes(data[at : at + size], "little")
    new = rng.choice([*EXTREMES, old + 1, old - 1, len(data), len(data) - 8]) % 256**size
    return data[:at] + new.to_bytes(size, "little") + data[at + size :]


#: Damage that needs to know nothing of the format.
BYTES: dict[str, Mutation] = {
    "truncated": truncate,
    "flipped bits": flip,
    "overwritten": overwrite,
    "spliced": splice,
    "inserted": insert,
    "wrong lengths": lengths,
}


def damaged_json(text: bytes, rng: random.Random) -> bytes:
    """Well-formed or nearly: other values and types, absurd numbers, NaN, keys lost, renamed, twice; deep nesting."""
    tree = json.loads(text)
    for _ in range(rng.choice([1, 1, 2, 4])):
        tree = _changed(tree, rng)
    out = json.dumps(tree, ensure_ascii=rng.random() < 0.5)
    kind = rng.random()
    if kind < 0.05:
        depth = rng.choice([100, 1000, 200_000])
        out = out.replace(":", ":" + "[" * depth + "]" * depth + ',"x":', 1)
    elif kind < 0.1 and out.startswith("{"):
        out = "{" + out[1 : out.find(",") + 1] + out[1:]  # the first key comes twice
    elif kind < 0.13:
        out = out.replace("1", "9" * rng.choice([20, 400, 5000]), 1)  # Python refuses integers of 4300 digits and more
    return out.encode("utf-8", "surrogatepass")


def _changed(tree: Any, rng: random.Random) -> Any:
    places = list(_places(tree))
    if not places:
        return _odd(rng)
    holder, key = rng.choice(places)
    action = rng.choice(["odd", "odd", "odd", "delete", "rename", "again", "more"])
    if action == "odd" or (isinstance(holder, list) and action == "rename"):
        old = holder[key]
        near = [old + 1, -old, old * 2**33] if isinstance(old, int) and not isinstance(old, bool) else []
        holder[key] = rng.choice([_odd(rng), *near])
    elif action == "delete":
        del holder[key]
    elif action == "rename":
        holder[rng.choice(ODD_TEXTS)] = holder.pop(key)
    elif action == "again":
        other, at = rng.choice(places)
        other[at] = json.loads(json.dumps(holder[key]))
    elif isinstance(holder, list):
        holder.extend([holder[key]] * rng.choice([1, 3, 1000]))
    else:
        holder[rng.choice(ODD_TEXTS)] = _odd(rng)
    return tree


def _places(tree: Any) -> Any:
    """Every (container, key) below a tree."""
    for key in list(tree) if isinstance(tree, dict) else range(len(tree)) if isinstance(tree, list) else ():
        yield tree, key
        yield from _places(tree[key])


def _odd(rng: random.Random) -> Any:
    values = [None, True, False, -1, 0.5, 1e308, -0.0, float("nan"), float("inf"), float("-inf"), [], {}, [[]], [None]]
    return rng.choice([rng.choice(values), rng.choice(ODD_TEXTS), rng.choice(EXTREMES), -rng.choice(EXTREMES)])


def _place(data: bytes, rng: random.Random) -> int:
    return rng.randrange(len(data) if rng.random() < 0.5 else min(len(data), 512))
