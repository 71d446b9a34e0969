"""The rules of a plan: which Parameters can become Bayesian, and which a conversion refuses to touch."""

from __future__ import annotations

import re
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn.parameter import UninitializedTensorMixin  # type: ignore[attr-defined]

from bensemble.errors import refuse
from bensemble.layers.weights import PosteriorModule
from bensemble.models.sharding import is_sharded
from bensemble.torch_internals import BatchNormBase

from .analysis import Analysis
from .places import Place
from .selection import Selection
from .weight_paths import LINEAR_OPERATIONS

__all__ = ["is_embedding", "refusal", "why_deterministic"]

EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
NORMS = (BatchNormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.LocalResponseNorm)

#: Names of tables and tokens, used only where neither a trace nor a probe says what a Parameter does.
_TABLE_NAME = re.compile(r"pos|token|cls|query|embed|anchor|bias|table|scale|gamma|beta|norm|prompt|prefix|dist")


def why_deterministic(
    parameter: nn.Parameter, places: list[Place], selection: Selection, analysis: Analysis
) -> str | None:
    """The reason why a Parameter stays deterministic, or None when it becomes Bayesian."""
    candidate = Candidate(parameter, places, selection, analysis)
    found = next((reason for applies, reason in REASONS if applies(candidate)), None)
    return found if found is None or isinstance(found, str) else found(candidate)


@dataclass(frozen=True)
class Candidate:
    """One Parameter, with all that decides whether it becomes Bayesian.

    Attributes:
        parameter: The Parameter.
        places: Where it is registered.
        selection: What the user named.
        analysis: What is known about the forward.
    """

    parameter: nn.Parameter
    places: list[Place]
    selection: Selection
    analysis: Analysis

    @property
    def is_excluded(self) -> bool:
        """Whether ``exclude`` names it."""
        return any(self.selection.excludes(p.path, p.module, p.name) for p in self.places)

    @property
    def is_included(self) -> bool:
        """Whether ``include`` names it, or everything is included."""
        return any(self.selection.includes(p.path, p.module, p.name) for p in self.places)

    @property
    def is_named(self) -> bool:
        """Whether the user names it in a way that overrides the defaults."""
        return any(self.selection.names_outright(p.path, p.module, p.name) for p in self.places)

    @property
    def is_guessed(self) -> bool:
        """Whether its shape, name and use decide: no layer with a twin owns it, and the user does not name it."""
        return not any(p.is_local for p in self.places) and not self.is_named

    @property
    def convertible(self) -> list[Place]:
        """Places where it is neither a lookup table nor part of a norm."""
        return [p for p in self.places if not (is_embedding(p) or _is_norm(p))]

    @property
    def operations(self) -> set[str]:
        """Operations where it meets data."""
        return self.analysis.operations.get(id(self.parameter), set())

    def is_in(self, kinds: type | tuple[type, ...]) -> bool:
        """Whether a module of one of these types owns it."""
        return any(isinstance(p.module, kinds) for p in self.places)


def is_embedding(place: Place) -> bool:
    """Whether the Parameter is a lookup table of torch's own."""
    return isinstance(place.module, EMBEDDINGS) and place.name == "weight"


def _is_norm(place: Place) -> bool:
    return isinstance(place.module, NORMS) and place.name in ("weight", "bias")


def _is_renormalised(candidate: Candidate) -> bool:
    """Whether an embedding with ``max_norm`` owns it."""
    return any(isinstance(p.module, EMBEDDINGS) and p.module.max_norm is not None for p in candidate.places)


def _is_unreached(candidate: Candidate) -> bool:
    """Whether the forward is known and does not use the Parameter, and no name in ``include`` covers it."""
    analysis = candidate.analysis
    if not analysis.known or id(candidate.parameter) in analysis.seen:
        return False
    if any(candidate.selection.names(p.path, p.module, p.name) for p in candidate.places):
        return False
    # A trace does not look into what it calls. A probe sees every read, except by kernels that torch cannot see.
    return not any(
        place.path in analysis.inside or (analysis.calls[place.path] and (analysis.source == "fx" or place.is_local))
        for place in candidate.places
    )


def _has_unknown_use(candidate: Candidate) -> bool:
    """Whether no operation is known, and the owner is no layer of torch that the forward calls."""
    place = candidate.convertible[0]
    return not candidate.operations and not (candidate.analysis.calls[place.path] and _is_torchs_own(place))


def _looks_like_table(candidate: Candidate) -> bool:
    parameter = candidate.parameter
    return _has_unknown_use(candidate) and parameter.shape[0] == 1 and parameter.dim() in (3, 4)


def _is_named_like_table(candidate: Candidate) -> bool:
    place = candidate.convertible[0]
    return _has_unknown_use(candidate) and not _is_torchs_own(place) and bool(_TABLE_NAME.search(place.name))


def _is_torchs_own(place: Place) -> bool:
    return type(place.module).__module__.startswith("torch.nn.")


def _left_as_it_is(candidate: Candidate) -> str:
    stem, _, part = candidate.places[0].name.rpartition("_")
    return "Bayesian already" if stem and part in ("mu", "rho") else "beside weights that are Bayesian already"


def _not_reached(candidate: Candidate) -> str:
    by = "these example inputs" if candidate.analysis.source == "probe" else "a forward with default arguments"
    return (
        f"not reached by {by}; name it in include to convert it, though the KL alone would shrink it where unused, or "
        "pass calls that reach it: example_inputs=[a, b], entry_points={'encode': x}"
    )


#: Why a Parameter stays deterministic: (whether this applies, the reason). The first that applies counts.
REASONS: tuple[tuple[Callable[[Candidate], bool], str | Callable[[Candidate], str]], ...] = (
    (lambda c: c.is_in(PosteriorModule), _left_as_it_is),
    (lambda c: c.is_in(torch.jit.ScriptModule), "compiled by TorchScript"),
    (lambda c: c.is_excluded, "excluded"),
    (lambda c: not c.is_included, "not included"),
    (
        lambda c: not c.parameter.is_floating_point(),
        lambda c: f"holds {c.parameter.dtype}, not floating point numbers",
    ),
    (lambda c: c.parameter.numel() == 0, "has no elements"),
    (_is_renormalised, "an embedding with max_norm writes into it in every forward"),
    (lambda c: id(c.parameter) in c.analysis.written, "a forward writes into it, which would miss its sigma"),
    (lambda c: not c.parameter.requires_grad and not c.is_named, "frozen; name it in include to convert it"),
    (
        lambda c: not c.convertible and not c.is_named,
        lambda c: "an embedding" if is_embedding(c.places[0]) else "a norm",
    ),
    (lambda c: c.is_guessed and c.parameter.dim() < 2, "a vector"),
    (lambda c: c.is_guessed and sum(size > 1 for size in c.parameter.shape) < 2, "a vector in disguise"),
    (_is_unreached, _not_reached),
    (
        lambda c: c.is_guessed and bool(c.operations) and c.operations.isdisjoint(LINEAR_OPERATIONS),
        lambda c: f"reaches {', '.join(sorted(c.operations))}, no linear operation",
    ),
    (
        lambda c: c.is_guessed and _looks_like_table(c),
        "looks like a token or a position table; name it in include to convert it",
    ),
    (
        lambda c: c.is_guessed and _is_named_like_table(c),
        "named like a table or token; name it in include, or pass example_inputs, to convert it",
    ),
)


def refusal(verb: str, model: nn.Module, owners: dict[int, tuple[nn.Parameter, list[Place]]]) -> None:
    """Raise one ConversionError for all Parameters and modules that no conversion can handle."""
    problems = []
    for parameter, places in owners.values():
        name, owner = places[0].full_name, type(places[0].module).__name__
        if isinstance(parameter, UninitializedTensorMixin):
            problems.append(f"'{name}' of {owner} has no shape yet; run one forward of the model first.")
        elif parameter.layout != torch.strided:
            problems.append(f"'{name}' is sparse, got layout {parameter.layout}; call .to_dense() on it first.")
        elif parameter.is_quantized:
            problems.append(f"'{name}' is quantised, got {parameter.dtype}; convert before you quantise.")
        elif _is_sharded(parameter):
            problems.append(f"'{name}' is sharded, got {type(parameter).__name__}; bayesify first, then shard.")
    for path, module in model.named_modules():
        at = f"'{path}'" if path else "the model"
        if _is_quantised(module) and "packed" not in path:
            problems.append(f"{at} is quantised, got {type(module).__name__}; convert before you quantise.")
        elif isinstance(module, nn.parallel.DistributedDataParallel):
            problems.append(
                f"{at} is a DistributedDataParallel, which would not reduce the gradients of new parameters; "
                "bayesify its .module, then wrap the result."
            )
    refuse(verb, problems)


def _is_quantised(module: nn.Module) -> bool:
    """Whether a module computes with quantised numbers."""
    if not type(module).__module__.startswith("torch.ao.nn.quantized"):
        return False
    from torch.ao.nn.quantized import FloatFunctional, FXFloatFunctional  # the user's model has imported it

    # Networks that can be quantised later add and concatenate with these, in floating point.
    return not isinstance(module, (FloatFunctional, FXFloatFunctional))


def _is_sharded(parameter: Tensor) -> bool:
    """Whether this process holds only a part of the tensor."""
    return bool(getattr(parameter, "_is_flat_param", False)) or is_sharded(parameter) or is_sharded(parameter.data)
