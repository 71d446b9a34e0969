"""The rules of a plan: which Parameters can become Bayesian, and which a conversion refuses to touch."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn.modules.batchnorm import _NormBase
from torch.nn.parameter import UninitializedTensorMixin  # type: ignore[attr-defined]

from bensemble.errors import refuse
from bensemble.layers.weights import PosteriorWeights
from bensemble.models.sharding import is_sharded

from .analysis import Analysis
from .selection import Selection
from .trails import LINEAR_OPERATIONS

if TYPE_CHECKING:
    from .conversion import Place

__all__ = ["is_embedding", "refusal", "why_deterministic"]

EMBEDDINGS = (nn.Embedding, nn.EmbeddingBag)
NORMS = (_NormBase, nn.LayerNorm, nn.GroupNorm, nn.RMSNorm, nn.LocalResponseNorm)

#: Names that tables and tokens go by, asked only where neither a trace nor a probe says what a Parameter does.
_TABLE_NAME = re.compile(r"pos|token|cls|query|embed|anchor|bias|table|scale|gamma|beta|norm|prompt|prefix|dist")


def why_deterministic(
    parameter: nn.Parameter, places: list[Place], selection: Selection, analysis: Analysis
) -> str | None:
    """The reason why a Parameter stays deterministic, or None when it becomes Bayesian."""
    if any(isinstance(p.module, PosteriorWeights) for p in places):
        return _why_left_as_it_is(places)
    if any(isinstance(p.module, torch.jit.ScriptModule) for p in places):
        return "compiled by TorchScript"
    if any(selection.excludes(p.path, p.module, p.name) for p in places):
        return "excluded"
    if not any(selection.includes(p.path, p.module, p.name) for p in places):
        return "not included"
    named = any(selection.names_outright(p.path, p.module, p.name) for p in places)
    if not parameter.is_floating_point():
        return f"holds {parameter.dtype}, not floating point numbers"
    if parameter.numel() == 0:
        return "has no elements"
    if any(isinstance(p.module, EMBEDDINGS) and p.module.max_norm is not None for p in places):
        return "an embedding with max_norm writes into it in every forward"
    if id(parameter) in analysis.written:
        return "a forward writes into it, which would miss its sigma"
    if not parameter.requires_grad and not named:
        return "frozen; name it in include to convert it"
    converts = [p for p in places if not (is_embedding(p) or _is_norm(p))]
    if not converts and not named:
        return "an embedding" if is_embedding(places[0]) else "a norm"
    if any(p.is_local for p in places):
        return _why_never_used(parameter, places, analysis)
    if not named:
        if parameter.dim() < 2:
            return "a vector"
        if sum(size > 1 for size in parameter.shape) < 2:
            return "a vector in disguise"
        unused = _why_never_used(parameter, places, analysis)
        return unused or _why_no_linear_operation(parameter, converts[0], analysis)
    return _why_never_used(parameter, places, analysis)


def is_embedding(place: Place) -> bool:
    """Whether the Parameter is a lookup table of torch's own."""
    return isinstance(place.module, EMBEDDINGS) and place.name == "weight"


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
    """Whether only a part of the tensor lives in this process."""
    return bool(getattr(parameter, "_is_flat_param", False)) or is_sharded(parameter) or is_sharded(parameter.data)


def _why_left_as_it_is(places: list[Place]) -> str:
    place = places[0]
    stem, _, part = place.name.rpartition("_")
    return "Bayesian already" if stem and part in ("mu", "rho") else "beside weights that are Bayesian already"


def _is_norm(place: Place) -> bool:
    return isinstance(place.module, NORMS) and place.name in ("weight", "bias")


def _why_never_used(parameter: nn.Parameter, places: list[Place], analysis: Analysis) -> str | None:
    if not analysis.known or id(parameter) in analysis.seen:
        return None
    for place in places:
        # A trace does not look into what it calls; a probe sees every read, except by kernels that torch cannot see.
        if place.path in analysis.inside or (
            analysis.calls[place.path] and (analysis.source == "fx" or place.is_local)
        ):
            return None
    return "never used in a forward; the KL alone would shrink it to nothing"


def _why_no_linear_operation(parameter: nn.Parameter, place: Place, analysis: Analysis) -> str | None:
    operations = analysis.operations.get(id(parameter), set())
    if operations:
        if operations & LINEAR_OPERATIONS:
            return None
        return f"reaches {', '.join(sorted(operations))}, no linear operation"
    if analysis.calls[place.path] and type(place.module).__module__.startswith("torch.nn."):
        return None
    if parameter.shape[0] == 1 and parameter.dim() in (3, 4):
        return "looks like a token or a position table; name it in include to convert it"
    if _TABLE_NAME.search(place.name) and not type(place.module).__module__.startswith("torch.nn."):
        return "named like a table or token; name it in include, or pass example_inputs, to convert it"
    return None
