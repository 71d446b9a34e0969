"""The JSON header of a checkpoint: which weights are Bayesian, how, and with which priors.

Files may come from untrusted sources, so every field is checked before it is used.
"""

from __future__ import annotations

import hashlib
import json
import math
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import torch
from torch import Tensor

from ..errors import CheckpointError, shown
from ..posterior import Posterior
from ..priors import ARD, Normal

__all__ = [
    "FORMAT_VERSION",
    "Header",
    "PosteriorEntry",
    "describe_prior",
    "read_header",
    "restore_prior",
    "unique_keys",
]

FORMAT_VERSION = 4  # 1 has no digest; 2 no optional fields of entries; 3 no versions of modules; the lowest is written
_OPTIONAL = ("basis", "is_last")
_LONGEST = 64 * 1024 * 1024  # characters; a header of a model with 100,000 posteriors has about a third of this


@dataclass(frozen=True)
class PosteriorEntry:
    """One posterior of a checkpoint.

    Attributes:
        places: Original names of the weight; more than one if it is shared.
        tiers: For each place "local" (a registered twin) or "sampled".
        shape: Shape of the weight.
        prior: The result of :func:`describe_prior`.
        mask: Whether the weight has a pruning mask.
        basis: Whether rho stands in a basis of its own.
        prunable: For each place, whether the weight may be pruned.
        estimators: For each place, the estimator of the layer.
        is_last: For each place, whether the layer is the model's last one; empty where none is, and in older files.
    """

    places: tuple[str, ...]
    tiers: tuple[str, ...]
    shape: tuple[int, ...]
    prior: dict[str, Any]
    mask: bool
    prunable: tuple[bool, ...]
    estimators: tuple[str, ...]
    basis: bool = False
    is_last: tuple[bool, ...] = ()


@dataclass(frozen=True)
class Header:
    """All posteriors of a checkpoint, and the names of shared tensors.

    Attributes:
        posteriors: One entry for each posterior.
        shared: A shared tensor is stored under its first name; this maps each other name to the first.
        version: Version of the format.
        digest: SHA-256 of the rest of the header and of every tensor; empty in version 1.
        versions: What modules noted in the state dict beside their tensors, by path; their loading reads it.
    """

    posteriors: tuple[PosteriorEntry, ...]
    shared: dict[str, str]
    version: int
    digest: str = ""
    versions: dict[str, dict[str, Any]] = field(default_factory=dict)

    def to_json(self) -> str:
        """The header as text, the same for the same model."""
        content = asdict(self)
        if not self.versions:
            del content["versions"]
        for entry in content["posteriors"]:
            for key in _OPTIONAL:
                if not entry[key]:
                    del entry[key]
        return json.dumps(content, sort_keys=True, separators=(",", ":"))

    def digest_of(self, tensors: dict[str, Tensor]) -> str:
        """The digest of this header with these tensors, which must be contiguous and on the CPU."""
        digest = hashlib.sha256(replace(self, digest="").to_json().encode())
        for name in sorted(tensors):
            tensor = tensors[name]
            digest.update(f"\n{name} {tensor.dtype} {tuple(tensor.shape)}\n".encode())
            if tensor.numel():
                digest.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
        return digest.hexdigest()


def describe_prior(name: str, posterior: Posterior) -> dict[str, Any]:
    """A built-in prior as JSON, without its tensors, which are in the state dict.

    Raises:
        CheckpointError: The prior is not one of the built-in ones.
    """
    prior = posterior.prior
    if type(prior) is ARD:
        return {"type": "ard"}
    if type(prior) is Normal:
        return {
            "type": "normal",
            "sigma": "tensor" if isinstance(prior.sigma, Tensor) else float(prior.sigma),
            "mean": "tensor" if isinstance(prior.mean, Tensor) else float(prior.mean),
        }
    raise CheckpointError(
        f"save: the prior of '{name}' must be one of bensemble.priors, got {type(prior).__name__}; "
        "save bnn.state_dict() and keep the code that made the prior."
    )


def restore_prior(described: dict[str, Any], tensors: dict[str, Tensor]) -> Normal | ARD:
    """The prior that :func:`describe_prior` described, with the tensors of its fields."""
    if described["type"] == "ard":
        return ARD()
    parts = {part: tensors[part] if described[part] == "tensor" else described[part] for part in ("sigma", "mean")}
    return Normal(**parts)


def read_header(path: str, text: str | None) -> Header:
    """The header of a file, every field checked.

    Raises:
        CheckpointError: The header is missing, malformed, or from a newer version.
    """
    if text is None:
        raise CheckpointError(
            f"load: '{path}' has no bensemble header, got a plain safetensors file; "
            "load a deterministic checkpoint with model.load_state_dict(safetensors.torch.load_file(path))."
        )
    try:
        if len(text) > _LONGEST:
            raise ValueError(f"it has {len(text)} characters")
        raw = json.loads(text, object_pairs_hook=unique_keys)
        if not isinstance(raw, dict) or type(raw.get("version")) is not int:
            raise ValueError("it has no version")
        if raw["version"] > FORMAT_VERSION:
            raise CheckpointError(
                f"load: '{path}' has format version {raw['version']}, got a bensemble that reads up to "
                f"{FORMAT_VERSION}; update bensemble."
            )
        return _checked(raw)
    except (ValueError, KeyError, TypeError, RecursionError) as err:
        raise CheckpointError(
            f"load: the header of '{path}' is damaged ({shown(err, 200)}); get the file again."
        ) from err


def unique_keys(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """A JSON object whose keys must differ, as the ``object_pairs_hook`` of ``json.loads``."""
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key occurs twice")
    return found


def _checked(raw: dict[str, Any]) -> Header:
    wanted = {"posteriors", "shared", "version"} | ({"digest"} if raw["version"] > 1 else set())
    wanted |= {"versions"} if raw["version"] > 3 else set()
    _require(set(raw) == wanted and raw["version"] > 0, "its fields are not those of a header")
    _require(isinstance(raw.get("digest", ""), str), "digest is not a text")
    _require(isinstance(raw["posteriors"], list), "posteriors is not a list")
    shared = raw["shared"]
    _require(isinstance(shared, dict) and all(isinstance(v, str) for v in shared.values()), "shared does not map names")
    entries = tuple(_checked_entry(entry, raw["version"]) for entry in raw["posteriors"])
    versions = raw.get("versions", {})
    _require(isinstance(versions, dict) and all(isinstance(v, dict) for v in versions.values()), "bad versions")
    return Header(entries, dict(shared), raw["version"], raw.get("digest", ""), versions)


def _checked_entry(entry: Any, version: int) -> PosteriorEntry:
    _require(isinstance(entry, dict), "an entry is not an object")
    optional = set(_OPTIONAL) & set(entry) if version > 2 else set()
    wanted = {field.name for field in fields(PosteriorEntry)} - set(_OPTIONAL)
    _require(set(entry) - optional == wanted, "an entry has other fields than a posterior")
    places, count = entry["places"], len(entry["places"])
    _require(isinstance(places, list) and count > 0, "a posterior has no place")
    _require(all(isinstance(p, str) and p and ".." not in p for p in places), "a place is not a parameter name")
    for key, allowed in (("tiers", ("local", "sampled")), ("estimators", ("local", "weights"))):
        values = entry[key]
        _require(isinstance(values, list) and len(values) == count and all(v in allowed for v in values), f"bad {key}")
    prunable = entry["prunable"]
    _require(isinstance(prunable, list) and len(prunable) == count, "bad prunable")
    last = entry.get("is_last", [])
    _require(isinstance(last, list) and len(last) in (0, count), "bad is_last")
    flags = [*prunable, *last, entry["mask"], entry.get("basis", False)]
    _require(all(type(flag) is bool for flag in flags), "a flag is neither true nor false")
    _require(isinstance(entry["shape"], list) and all(type(n) is int and n >= 0 for n in entry["shape"]), "bad shape")
    _check_prior(entry["prior"])
    checked: dict[str, Any] = {key: tuple(value) if isinstance(value, list) else value for key, value in entry.items()}
    return PosteriorEntry(**checked)


def _check_prior(prior: Any) -> None:
    _require(isinstance(prior, dict), "a prior is not an object")
    if prior.get("type") == "ard":
        _require(set(prior) == {"type"}, "an ard prior has parameters")
        return
    _require(prior.get("type") == "normal" and set(prior) == {"type", "sigma", "mean"}, "a prior of unknown type")
    sigma, mean = prior["sigma"], prior["mean"]
    _require(sigma == "tensor" or (_is_number(sigma) and sigma > 0), "a prior sigma is not positive")
    _require(mean == "tensor" or _is_number(mean), "a prior mean is not a number")


def _is_number(value: Any) -> bool:
    return isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)


def _require(holds: bool, problem: str) -> None:
    if not holds:
        raise ValueError(problem)
