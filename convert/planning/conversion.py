"""The plan of a conversion: what becomes Bayesian, how, and why the rest does not.

Every Parameter of the model has one row. ``bayesify(model, plan=p)`` executes exactly ``p``.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor, nn

from bensemble.checks import check_module
from bensemble.layers.registry import bayesian_type
from bensemble.layers.weights import PosteriorWeights

from .analysis import Analysis, analyse
from .eligibility import is_embedding, refusal, why_deterministic
from .selection import Selection, parse_selection
from .table import render_html, render_text
from .trails import LINEAR_OPERATIONS

__all__ = ["ConversionPlan", "PlanRow", "plan"]


@dataclass(frozen=True)
class PlanRow:
    """What happens to one Parameter.

    Attributes:
        name: Its first name in the model.
        aliases: Its other names, where it is shared or its module has several.
        type: Type of the module that owns it.
        shape: Its shape.
        tier: "local" (a Bayesian twin of the layer: local reparameterization), "sampled" (a posterior with sampled
            weights), "deterministic", or "posterior" (a mean or rho of a layer that is Bayesian already).
        calls: How often a forward calls the owning module, None when that is unknown.
        operations: Operations that the weight reaches without a call of its module.
        prunable: Whether a zero mean is a zero in the weight that reaches the operation.
        reason: Why it stays deterministic, or what else there is to know.
    """

    name: str
    aliases: tuple[str, ...]
    type: str
    shape: tuple[int, ...]
    tier: str
    calls: int | None
    operations: tuple[str, ...]
    prunable: bool
    reason: str

    @property
    def numel(self) -> int:
        """Number of weights."""
        count = 1
        for size in self.shape:
            count *= size
        return count

    @property
    def is_bayesian(self) -> bool:
        """Whether the Parameter gets a posterior."""
        return self.tier in ("local", "sampled")


@dataclass(frozen=True)
class ConversionPlan:
    """All rows, and where the knowledge came from. Prints as a table that folds repeated blocks.

    Attributes:
        rows: One for each distinct Parameter, in the model's order.
        model: Type of the model.
        source: "probe" (example inputs), "fx" (a torch.fx trace) or "unknown" (neither was possible).
    """

    rows: tuple[PlanRow, ...]
    model: str
    source: str

    @property
    def summary(self) -> str:
        """One line: how many weights become Bayesian, and how many posteriors that makes."""
        bayesian = sum(row.numel for row in self.rows if row.is_bayesian)
        total = sum(row.numel for row in self.rows)
        posteriors = sum(row.is_bayesian for row in self.rows)
        share = 100 * bayesian / total if total else 0.0
        return (
            f"{self.model}: {bayesian:,} of {total:,} parameters ({share:.1f} %) become Bayesian, "
            f"in {posteriors} posteriors."
        )

    def __str__(self) -> str:
        return render_text(self)

    def _repr_html_(self) -> str:
        return render_html(self)

    def to_json(self, indent: int | None = 2) -> str:
        """The plan as JSON, with every row."""
        return json.dumps(
            {
                "model": self.model,
                "source": self.source,
                "summary": self.summary,
                "rows": [asdict(row) for row in self.rows],
            },
            indent=indent,
        )


def plan(
    model: nn.Module, *, include: Any = None, exclude: Any = None, example_inputs: Any = None, trace: bool = True
) -> ConversionPlan:
    """Say what ``bayesify`` would do with a model. The model and the random state are left alone.

    Args:
        model: Any module.
        include: What may become Bayesian: dotted names, globs, module types, module objects, callables
            ``(name, module) -> bool``, or a sequence of these. Default: everything.
        exclude: The same for what must not; wins over ``include``.
        example_inputs: Inputs for one probe forward, which sees more than a torch.fx trace: a tensor, a tuple of
            arguments, or a mapping of keyword arguments.
        trace: Whether to trace with torch.fx when there are no example inputs.

    Raises:
        InvalidTypeError: ``model`` is not a module, or a selector has an impossible type.
        InvalidValueError: a selector matches nothing, or the model rejects the example inputs.
        ConversionError: the model holds parameters that cannot be converted, each named with the cure.

    Example:
        >>> print(plan(torchvision.models.resnet50()))
    """
    return make_plan("plan", model, include, exclude, example_inputs, trace)


def make_plan(
    verb: str, model: nn.Module, include: Any, exclude: Any, example_inputs: Any, trace: bool = True
) -> ConversionPlan:
    """:func:`plan` for another public function, which errors name."""
    check_module(verb, model)
    owners = owners_of(model)
    selection = parse_selection(verb, model, include, exclude)
    refusal(verb, model, owners)
    analysis = analyse(verb, model, example_inputs) if trace or example_inputs is not None else Analysis()
    rows = []
    verdicts: dict[int, PlanRow] = {}
    for parameter, places in owners.values():
        row = _row(parameter, places, selection, analysis, owners)
        verdicts[id(parameter)] = row
        rows.append(row)
    return ConversionPlan(tuple(rows), type(model).__name__, analysis.source)


@dataclass(frozen=True)
class Place:
    """One place where a Parameter is registered."""

    path: str
    module: nn.Module
    name: str

    @property
    def full_name(self) -> str:
        """Dotted name of the Parameter at this place."""
        return f"{self.path}.{self.name}" if self.path else self.name

    @property
    def is_local(self) -> bool:
        """Whether a registered twin can take over here."""
        twin = bayesian_type(type(self.module))
        return twin is not None and self.name in twin._stems and "weight" in self.module._parameters


def owners_of(model: nn.Module) -> dict[int, tuple[nn.Parameter, list[Place]]]:
    """Every distinct Parameter with all places where it is registered, by identity and in the model's order."""
    owners: dict[int, tuple[nn.Parameter, list[Place]]] = {}
    for path, module in model.named_modules(remove_duplicate=False):
        for name, parameter in module._parameters.items():
            if parameter is not None:
                owners.setdefault(id(parameter), (parameter, []))[1].append(Place(path, module, name))
    return owners


def _row(
    parameter: nn.Parameter,
    places: list[Place],
    selection: Selection,
    analysis: Analysis,
    owners: dict[int, tuple[nn.Parameter, list[Place]]],
) -> PlanRow:
    reason = why_deterministic(parameter, places, selection, analysis)
    first = next((p for p in places if p.is_local), places[0])
    if reason is None and first.is_local and first.name != "weight":
        # A bias follows the weight of its layer.
        weight = first.module._parameters["weight"]
        assert weight is not None
        if why_deterministic(weight, owners[id(weight)][1], selection, analysis) is not None:
            reason = "the weight of its layer stays deterministic"
    if _is_posterior_tensor(places[0]):
        tier = "posterior"
    else:
        tier = "deterministic" if reason else ("local" if first.is_local else "sampled")
    return PlanRow(
        name=places[0].full_name,
        aliases=tuple(p.full_name for p in places[1:]),
        type=type(first.module).__name__,
        shape=tuple(parameter.shape),
        tier=tier,
        calls=_calls(parameter, places, analysis),
        operations=tuple(sorted(analysis.operations.get(id(parameter), ()))),
        prunable=reason is None and all(_prunable(parameter, p, analysis) for p in places),
        reason=reason or _remark(parameter, places, analysis),
    )


def _calls(parameter: nn.Parameter, places: list[Place], analysis: Analysis) -> int | None:
    """How often the owning modules are called; a trace does not say it of modules that it looks into."""
    calls = sum(analysis.calls[path] for path in {p.path for p in places})
    looked_into = analysis.source == "fx" and id(parameter) in analysis.seen and not any(p.is_local for p in places)
    return None if not analysis.known or (looked_into and not calls) else calls


def _is_posterior_tensor(place: Place) -> bool:
    """Whether the Parameter is a mean or rho already."""
    if not isinstance(place.module, PosteriorWeights):
        return False
    return place.name in {f"{p.stem}_{part}" for p in place.module._posteriors() for part in ("mu", "rho")}


def _prunable(parameter: nn.Parameter, place: Place, analysis: Analysis) -> bool:
    """Whether zeros in the Parameter are zeros in the operation that it reaches."""
    if is_embedding(place) or id(parameter) in analysis.altered:
        return False
    if place.is_local:
        return True
    computed = any(isinstance(value, Tensor) for value in vars(place.module).values())  # by a hook, such as weight norm
    torchs_own = type(place.module).__module__.startswith("torch.nn.modules")
    if torchs_own and not computed and not isinstance(place.module, (nn.ParameterList, nn.ParameterDict)):
        return True
    return not LINEAR_OPERATIONS.isdisjoint(analysis.operations.get(id(parameter), ()))


def _remark(parameter: nn.Parameter, places: list[Place], analysis: Analysis) -> str:
    inside = next((analysis.inside[p.path] for p in places if p.path in analysis.inside), None)
    if inside is not None:
        return f"used inside {inside or 'the model'}"
    layers = [p for p in places if p.is_local]
    if layers and id(parameter) in analysis.seen and not any(analysis.calls[p.path] for p in layers):
        return "read without a call of its layer"
    return "tied" if len({id(p.module) for p in places}) > 1 else ""


def bayesian_places(model: nn.Module) -> Iterator[tuple[str, PosteriorWeights]]:
    """Every module of the model that holds posteriors already."""
    for path, module in model.named_modules():
        if isinstance(module, PosteriorWeights):
            yield path, module
