"""Two commands for an uncertainty file, without torch: what it is, and what it says about data.

python -m convert.runtime inspect sure.onnx
python -m convert.runtime report sure.onnx --data images.npz

The same as ``bensemble-runtime inspect`` where the distribution without torch is installed.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

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
    if options.json:
        print(json.dumps(found, indent=2))
    else:
        width = max(map(len, found))
        print("\n".join(f"{name:<{width}}  {_text(value)}" for name, value in found.items()))
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
    with np.load(data, allow_pickle=False) as archive:
        arrays = {name: archive[name] for name in archive.files}
    labels = arrays.pop(LABELS, None) if LABELS not in session.inputs else None
    feed = {name: a.astype(session.inputs[name][0]) if name in session.inputs else a for name, a in arrays.items()}
    session(**{name: array[:1] for name, array in feed.items()})
    before = time.perf_counter()
    answer = session.in_batches(BATCH, **feed)
    count = len(answer[session.outputs[0]])
    found: dict[str, Any] = {
        "file": session.name,
        "examples": count,
        "ms for each": round(1e3 * (time.perf_counter() - before) / max(count, 1), 4),
    }
    for name, array in answer.items():
        if array.dtype.kind == "f" and name != "probs" and array.size:
            quantiles = np.nanquantile(array, (0.1, 0.5, 0.9))
            found[name] = {f"{level}%": round(float(q), 6) for level, q in zip((10, 50, 90), quantiles, strict=True)}
    if labels is not None and "probs" in answer:
        names = answer.labels()
        known = np.asarray(session.classes)[labels] if session.classes and labels.dtype.kind in "iu" else labels
        found["accuracy"] = round(float(np.mean(names == known)), 6)
    if session.thresholds:
        found["rejected"] = round(float(np.mean(answer.reject())), 6)
    if session.counts:
        monitor = Monitor(session)
        monitor.update(answer)
        found["drift"] = str(monitor.verdict())
    return found


def _text(value: Any) -> str:
    if isinstance(value, dict):
        return ", ".join(f"{name} {item}" for name, item in value.items()) or "none"
    return (", ".join(map(str, value)) or "none") if isinstance(value, list) else str(value)


if __name__ == "__main__":
    sys.exit(main())
