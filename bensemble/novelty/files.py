"""Novelties as files: tensors as safetensors, and a JSON header, every field of which is checked. Nothing is executed.

The file does not hold the network, but the fingerprint of its means and buffers.
"""

from __future__ import annotations

import hashlib
import json
import os
from dataclasses import asdict, dataclass
from typing import Any

import torch
from torch import Tensor, nn

from ..checkpoint.finite import is_finite
from ..checkpoint.header import unique_keys
from ..checkpoint.reading import read_tensors
from ..checkpoint.writing import checked_target, replacing
from ..errors import CheckpointError, InvalidTypeError, needs_extra, shown
from ..fingerprints import network_fingerprint
from ..likelihoods import Bernoulli, Categorical, Gaussian, Likelihood
from .classes import kind_of
from .distance import RelativeDistance
from .features import FeatureReader
from .layouts import Layout

__all__ = ["NoveltyFile", "read_novelty", "save_novelty"]

FORMAT_VERSION = 2
#: Characters of the longest header; that of 10,000 layers has a twentieth of this.
_LONGEST = 2**24
_KEY = "bensemble_novelty"
_FIELDS: dict[str, Any] = {
    "version": int, "kind": str, "dim": (int, type(None)), "ignore_index": int, "layers": list,
    "projection": (int, type(None)), "seed": int, "per_position": bool, "joint": bool, "num_data": int,
    "output": (str, int, type(None)), "fingerprint": str, "heldout_digest": str, "digest": str,
}  # fmt: skip


@dataclass(frozen=True)
class NoveltyFile:
    """What a file holds; the attributes are those of :class:`bensemble.Novelty`."""

    reader: FeatureReader
    distances: list[RelativeDistance]
    likelihood: Likelihood
    heldout: Tensor
    standard: Tensor
    num_data: int
    digests: tuple[str, str]
    output: str | int | None


def save_novelty(novelty: Any, path: str | os.PathLike[str]) -> None:
    """Write a :class:`bensemble.Novelty`, which documents this."""
    with needs_extra("save", "io"):
        from safetensors import SafetensorError
        from safetensors.torch import save_file

    output = novelty.output
    target = checked_target(path, "save")
    likelihood = novelty.likelihood
    header = {
        "version": FORMAT_VERSION,
        "kind": kind_of(likelihood),
        "dim": likelihood.dim if isinstance(likelihood, Categorical) else None,
        "ignore_index": likelihood.ignore_index if isinstance(likelihood, Categorical) else -100,
        "layers": [asdict(layout) for layout in novelty.reader.layouts],
        "projection": novelty.reader.projection,
        "seed": novelty.reader.seed,
        "per_position": novelty.reader.per_position,
        "joint": novelty.reader.joint,
        "num_data": novelty.num_data,
        "output": output if isinstance(output, (str, int)) else None,
        "fingerprint": novelty.fingerprint,
        "heldout_digest": novelty.heldout_digest,
    }
    tensors = {name: t.detach().cpu().double().contiguous().clone() for name, t in novelty.state_dict().items()}
    header["digest"] = _digest(header, tensors)
    try:
        with replacing(target) as temporary:
            save_file(tensors, temporary, metadata={_KEY: json.dumps(header, sort_keys=True)})
    except (OSError, SafetensorError) as err:
        raise CheckpointError(
            f"save: '{target}' cannot be written, got {shown(err, 200)}; the old file is unchanged."
        ) from err


def read_novelty(path: str | os.PathLike[str], model: nn.Module) -> NoveltyFile:
    """Read the novelty of a model; see :meth:`bensemble.Novelty.load`."""
    if not isinstance(path, (str, os.PathLike)):
        raise InvalidTypeError(f"load: path must be a string or a Path, got {type(path).__name__}.")
    header, tensors = read_tensors(path, lambda found: _read_header(str(path), found.get(_KEY)))
    if header["digest"] != _digest(header, tensors):
        raise CheckpointError(f"load: '{path}' is damaged, got other bytes than were saved; get the file again.")
    if header["fingerprint"] != network_fingerprint(model):
        raise CheckpointError(
            f"load: '{path}' belongs to another model, got a {type(model).__name__} with other means or buffers than "
            "in the fit; load its weights first, or call fit_novelty."
        )
    try:
        return _contents(model, header, tensors)
    except (ValueError, RuntimeError) as err:
        raise CheckpointError(
            f"load: '{path}' does not hold a novelty ({shown(err, 200)}); get the file again."
        ) from err


def _read_header(path: str, text: str | None) -> dict[str, Any]:
    if text is None:
        raise CheckpointError(f"load: '{path}' has no header of a novelty; save one with novelty.save(path).")
    try:
        _require(len(text) <= _LONGEST, "it is too long")
        raw = json.loads(text, object_pairs_hook=unique_keys)
        _require(isinstance(raw, dict) and type(raw.get("version")) is int, "it has no version")
        if raw["version"] > FORMAT_VERSION:
            raise CheckpointError(
                f"load: '{path}' has format version {raw['version']}, got a bensemble that reads up to "
                f"{FORMAT_VERSION}; update bensemble."
            )
        if raw["version"] < FORMAT_VERSION:
            raise CheckpointError(
                f"load: '{path}' has format version {raw['version']}, whose scores have another formula, got a "
                f"bensemble that reads {FORMAT_VERSION}; call fit_novelty again."
            )
        _require(set(raw) == set(_FIELDS), "its fields are not those of a novelty")
        for name, kinds in _FIELDS.items():
            value = raw[name]
            _require(isinstance(value, kinds) and (kinds is bool or type(value) is not bool), f"{name} is malformed")
        _require(raw["kind"] in ("categorical", "bernoulli", "regression"), "its likelihood is unknown")
        _require(raw["projection"] is None or raw["projection"] > 0, "projection is malformed")
        _require(0 <= raw["seed"] < 2**62 and raw["num_data"] > 0, "a number is out of range")
        raw["layers"] = tuple(_layout(layout) for layout in raw["layers"])
        _require(len(raw["layers"]) > 0, "it has no layers")
        return raw
    except (ValueError, KeyError, TypeError, RecursionError) as err:
        if isinstance(err, CheckpointError):
            raise
        raise CheckpointError(
            f"load: the header of '{path}' is damaged ({shown(err, 200)}); get the file again."
        ) from err


def _layout(raw: Any) -> Layout:
    _require(isinstance(raw, dict) and set(raw) == {"number", "name", "width", "batch", "axis"}, "a layer is malformed")
    whole = all(type(raw[key]) is int for key in ("number", "width", "axis"))
    _require(whole and raw["number"] >= 0 and 0 < raw["width"] < 2**31, "a layer has no width")
    _require(isinstance(raw["name"], str) and raw["axis"] in (1, -1), "a layer has no name or axis")
    _require(raw["batch"] in ("first", "second", "merged"), "a layer has no batch axis")
    return Layout(**raw)


def _contents(model: nn.Module, header: dict[str, Any], tensors: dict[str, Tensor]) -> NoveltyFile:
    """What the file holds, after a check of every tensor."""
    modules = dict(model.named_modules(remove_duplicate=False))
    missing = [layout.name for layout in header["layers"] if layout.name not in modules]
    _require(not missing, f"the model has no layer {missing[:1]}")
    for name, tensor in tensors.items():
        _require(tensor.dtype == torch.float64 and is_finite(tensor), f"'{shown(name)}' is not finite float64")
    reader = FeatureReader(*(header[key] for key in ("layers", "projection", "seed", "per_position", "joint")))
    heldout, standard = tensors.pop("heldout", None), tensors.pop("standard", None)
    _require(heldout is not None and heldout.ndim == 1 and len(heldout) > 1, "it has no held-out scores")
    scales = 2 if header["kind"] == "categorical" else 1
    _require(standard is not None and standard.shape == (2 * scales,), "it has no standardisation")
    assert heldout is not None
    assert standard is not None
    slopes = [tensors.get(f"distances.{number}.slopes") for number in range(len(reader.sizes))]
    _require(all(s is not None and s.ndim == 2 and len(s) > 1 for s in slopes), "it has no class means")
    distances = [RelativeDistance(k, *s.shape) for k, s in zip(reader.sizes, slopes, strict=True) if s is not None]
    nn.ModuleDict({"distances": nn.ModuleList(distances)}).load_state_dict(tensors)
    scaled = [standard[1::2], *(distance.scale for distance in distances)]
    _require(all(bool((scale > 0).all()) for scale in scaled), "a scale is not positive")
    kinds: dict[str, Likelihood] = {
        "categorical": Categorical(header["dim"], header["ignore_index"]),
        "bernoulli": Bernoulli(),
        "regression": Gaussian(1.0),
    }
    digests = (header["fingerprint"], header["heldout_digest"])
    return NoveltyFile(
        reader, distances, kinds[header["kind"]], heldout, standard, header["num_data"], digests, header["output"]
    )


def _digest(header: dict[str, Any], tensors: dict[str, Tensor]) -> str:
    """SHA-256 of the header without its digest and of every tensor."""
    rest = {key: value for key, value in header.items() if key != "digest"}
    rest["layers"] = [value if isinstance(value, dict) else asdict(value) for value in rest["layers"]]
    digest = hashlib.sha256(json.dumps(rest, sort_keys=True).encode())
    for name in sorted(tensors):
        tensor = tensors[name]
        digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
        if tensor.numel():
            digest.update(tensor.contiguous().reshape(-1).view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _require(holds: bool, problem: str) -> None:
    if not holds:
        raise ValueError(problem)
