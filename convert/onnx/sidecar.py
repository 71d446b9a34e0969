"""The sidecar of an uncertainty file: what its metadata says, as JSON beside it, for clients that cannot read metadata.

ONNX Runtime for JavaScript gives no access to the metadata of a file. ``sure.onnx.json`` holds a copy, and the digest
of the file that it belongs to; where they differ, the file is right.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from bensemble.errors import InvalidValueError

from ..runtime.metadata import class_names
from .files.report import ExportReport, TensorInfo

__all__ = ["SIDECAR_SCHEMA", "check_sidecar", "sidecar", "sidecar_path"]

#: Version of the sidecar's form; it rises when a client has to change.
SIDECAR_SCHEMA = 1

#: Largest sidecar that is looked into.
LONGEST = 2**26

#: Strings of the metadata that are JSON.
HOLD_JSON = {f"bensemble.{key}" for key in ("calibration", "class_axis", "novelty", "num_samples", "reference")}
HOLD_JSON |= {"bensemble.reject", "bensemble.schema", "bensemble.terms"}

#: What each output of an uncertainty file means.
MEANINGS = {
    "probs": "probabilities of the classes, calibrated by the temperature",
    "entropy": "entropy of the probabilities in nats: total uncertainty",
    "mutual_information": "how much the networks disagree, in nats: epistemic uncertainty",
    "prediction_set": "which classes belong to the conformal prediction set",
    "mean": "predictive mean",
    "std": "standard deviation over the posterior: epistemic uncertainty",
    "noise_std": "standard deviation of the noise: aleatoric uncertainty",
    "lower": "lower end of the conformal interval",
    "upper": "upper end of the conformal interval",
    "novelty": "how strange the input is to the network",
    "novelty_pvalue": "share of familiar inputs that are as strange",
}


def sidecar_path(target: Path) -> Path:
    """``NAME.onnx.json`` beside ``NAME.onnx``."""
    return target.with_name(f"{target.name}.json")


def check_sidecar(target: Path) -> None:
    """Refuse to replace a file that is no sidecar, before anything is exported.

    Raises:
        InvalidValueError: A file or folder of that name is there, and it is something else.
    """
    path = sidecar_path(target)
    if not path.exists():
        return
    try:
        known = path.is_file() and path.stat().st_size <= LONGEST
        known = known and "bensemble_sidecar" in json.loads(path.read_text("utf-8"))
    except (OSError, RecursionError, TypeError, ValueError):
        known = False
    if not known:
        raise InvalidValueError(
            f"export_onnx: '{path}' is not a sidecar of export_onnx, and would be replaced by one; move it, or choose "
            "another path."
        )


def sidecar(name: str, report: ExportReport, data: bytes) -> bytes:
    """The text of the sidecar.

    Args:
        name: How the file is called.
        report: What the file holds.
        data: Its bytes.

    Returns:
        JSON in UTF-8, the same for the same file.
    """
    content = {
        "bensemble_sidecar": SIDECAR_SCHEMA,
        "file": {"name": name, "bytes": len(data), "sha256": hashlib.sha256(data).hexdigest()},
        "opset": report.opset,
        "inputs": [_described(info) for info in report.inputs],
        "outputs": [{**_described(info), "meaning": MEANINGS.get(info.name, "")} for info in report.outputs],
        "metadata": _values(report.metadata),
    }
    return (json.dumps(content, indent=1, ensure_ascii=False, allow_nan=False) + "\n").encode()


def _described(info: TensorInfo) -> dict[str, Any]:
    return {"name": info.name, "dtype": info.dtype, "shape": list(info.shape)}


def _values(metadata: Mapping[str, str]) -> dict[str, Any]:
    """The metadata with JSON values where its strings hold JSON."""
    found: dict[str, Any] = {key: json.loads(text) if key in HOLD_JSON else text for key, text in metadata.items()}
    return found | ({"classes": list(class_names(metadata["classes"]))} if "classes" in metadata else {})
