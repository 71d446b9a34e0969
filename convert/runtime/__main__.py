"""Two commands for an uncertainty file, without torch: what it is, and what it says about data.

python -m convert.runtime inspect sure.onnx
python -m convert.runtime report sure.onnx --data images.npz

The same as ``bensemble-runtime inspect`` where the distribution without torch is installed.
"""

from __future__ import annotations

import argparse
import json
import os
import sys
import time
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from .answers import Answer
from .files import message
from .monitor import Monitor
from .sessions import UncertaintySession

__all__ = ["main"]

#: Examples in one run.
BATCH = 64
#: Name of the labels in a file of data.
LABELS = "y"


def main(arguments: list[str] | None = None) -> int:
    """Run one command; the exit code."""
    parser = argparse.ArgumentParser(prog="bensemble-runtime", description="Uncertainty files, without torch.")
    commands = parser.add_subparsers(dest="command", required=True)
    for name, about in (("inspect", "what a file is"), ("report", "what a file says about data")):
        command = commands.add_parser(name, help=about)
        command.add_argument("file", type=Path)
        command.add_argument("--json", action="store_true", help="print JSON")
        if name == "report":
            text = f"npz file with the inputs by name; '{LABELS}' holds labels, if there are any"
            command.add_argument("--data", type=Path, required=True, help=text)
    options = parser.parse_args(arguments)
    try:
        session = UncertaintySession(options.file, threads=1)
        found = inspected(session) if options.command == "inspect" else reported(session, options.data)
    except (OSError, TypeError, ValueError, ImportError) as err:
        print(err, file=sys.stderr)
        return 1
    width = max(map(len, found))
    rows = "\n".join(f"{name:<{width}}  {_text(value)}" for name, value in found.items())
    try:
        print(json.dumps(found, indent=2) if options.json else rows, flush=True)
    except BrokenPipeError:  # the reader, such as head, has seen enough
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 0


def inspected(session: UncertaintySession) -> dict[str, Any]:
    """What a file is."""
    return {
        "file": session.name,
        "inputs": {name: f"{dtype}{list(shape)}" for name, (dtype, shape) in session.inputs.items()},
        "outputs": list(session.outputs),
        "likelihood": session.likelihood,
        "method": session.metadata.get("bensemble.method", ""),
        "networks": int(session.metadata.get("bensemble.num_samples", 1)),
        "classes": list(session.classes),
        "reference": dict(session.counts),
        "thresholds": dict(session.thresholds),
        "version": session.metadata.get("bensemble.version", ""),
    }


def reported(session: UncertaintySession, data: Path) -> dict[str, Any]:
    """What a file says about data: the outputs in three quantiles, and what follows from them."""
    arrays = _read(data)
    labels = arrays.pop(LABELS, None) if LABELS not in session.inputs else None
    kinds = {name: kind for name, (kind, _) in session.inputs.items()}
    feed = {
        name: array.astype(kinds[name])
        if name in kinds and np.can_cast(array.dtype, kinds[name], "same_kind")
        else array
        for name, array in arrays.items()
    }
    before = time.perf_counter()
    answer = session.in_batches(BATCH, **feed)
    count = len(answer[session.outputs[0]])
    if not count:
        raise ValueError(f"report: '{data}' must hold at least one example, got none.")
    found: dict[str, Any] = {
        "file": session.name,
        "examples": count,
        "ms for each": round(1e3 * (time.perf_counter() - before) / count, 4),
    }
    for name, array in answer.items():
        if array.dtype.kind == "f" and name != "probs" and array.size:
            quantiles = np.nanquantile(array, (0.1, 0.5, 0.9))
            found[name] = {f"{level}%": round(float(q), 6) for level, q in zip((10, 50, 90), quantiles, strict=True)}
    if labels is not None and "probs" in answer:
        accuracy = _accuracy(session, answer, labels)
        if accuracy is not None:
            found["accuracy"] = round(accuracy, 6)
    if session.thresholds:
        found["rejected"] = round(float(np.mean(answer.reject())), 6)
    if session.counts:
        monitor = Monitor(session)
        finite = np.all([np.isfinite(a).reshape(count, -1).all(1) for a in answer.values() if a.dtype.kind == "f"], 0)
        monitor.update({name: array[finite] for name, array in answer.items()})  # the others have no answer
        found["drift"] = str(monitor.verdict())
    return found


def _read(data: Path) -> dict[str, np.ndarray]:
    """The arrays of an npz file by name."""
    try:
        with data.open("rb") as file, np.load(file, allow_pickle=False) as archive:
            return {name: archive[name] for name in archive.files}
    except FileNotFoundError:
        raise
    except (AttributeError, EOFError, OSError, TypeError, ValueError, zipfile.BadZipFile) as err:
        raise ValueError(
            f"report: '{data}' must be an npz file with the inputs by name, got {message(err)}; write it with "
            "numpy.savez."
        ) from err


def _accuracy(session: UncertaintySession, answer: Answer, labels: np.ndarray) -> float | None:
    """The share of labels that are the most probable class; of several yes or no in one example, of all of them.

    Labels are class numbers, or names where the file has them; those below 0 do not count. None where none counts.
    """
    probs, axis = answer["probs"], session.class_axis
    if axis is None or axis >= probs.ndim:
        chosen, count, unknown = (probs > 0.5).astype(int), 2, np.isnan(probs)
    else:
        chosen, count, unknown = probs.argmax(axis), probs.shape[axis], np.isnan(probs).any(axis)
    labels = labels[..., 0] if labels.shape == (*chosen.shape, 1) else labels
    if labels.dtype.kind == "U" and session.classes:
        numbers = {name: number for number, name in enumerate(session.classes)}
        labels = np.array([numbers.get(name, count) for name in labels.flat]).reshape(labels.shape)
    if (
        labels.shape != chosen.shape
        or labels.dtype.kind not in ("iub" if count == 2 else "iu")
        or (labels.size and labels.max() >= count)
    ):
        raise ValueError(
            f"report: '{LABELS}' must hold class numbers below {count} or class names, of shape {list(chosen.shape)}, "
            f"got {labels.dtype} of shape {list(labels.shape)}"
            f"{f', up to {labels.max()}' if labels.size and labels.dtype.kind in 'iu' else ''}."
        )
    counted = labels.astype(int) >= 0
    return float(np.mean((chosen == labels)[counted] & ~unknown[counted])) if counted.any() else None


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {item}" for name, item in value.items()) or "none"
    return (", ".join(map(str, value)) or "none") if isinstance(value, list) else str(value)


if __name__ == "__main__":
    sys.exit(main())
