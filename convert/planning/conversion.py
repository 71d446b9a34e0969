"""The plan of a conversion: what becomes Bayesian, how, and why the rest does not.

Every Parameter of the model has one row. ``bayesify(model, plan=p)`` executes exactly ``p``.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from torch import Tensor, nn

from bensemble.checks import check_module
from bensemble.layers.weights import PosteriorModule
from bensemble.torch_internals import parameters_of

from .analysis import Analysis
from .eligibility import is_embedding, refusal, why_deterministic
from .ending import ProvenLast, proven_last
from .entries import Entry, entries
from .fx_trace import trace_forward
from .places import Place, owners_of
from .probe import probe_calls
from .rows import ConversionPlan, PlanRow
from .selection import Selection, parse_selection
from .weight_paths import LINEAR_OPERATIONS

__all__ = ["make_plan", "plan"]


def plan(
    model: nn.Module,
    *,
    include: Any = None,
    exclude: Any = None,
    example_inputs: Any = None,
    entry_points: Mapping[str, Any] | None = None,
    trace: bool = True,
) -> ConversionPlan:
    """Say what ``bayesify`` would do with a model. The model and the random state do not change.

    Args:
        model: Any module.
        include: What may become Bayesian: dotted names, globs, module types, module objects, callables
            ``(name, module) -> bool``, or a sequence of these. Default: everything.
        exclude: What must stay deterministic, named in the same ways; wins over ``include``.
        example_inputs: Inputs for one probe forward, which sees more than a torch.fx trace: a tensor, a tuple of
            arguments, or a mapping of keyword arguments; a list of these for several forwards, where one does not
            reach every layer. Where one layer alone becomes Bayesian, some more forwards prove whether it is the last.
        entry_points: Methods that are called as well, each with its inputs: ``{"encode": x}``.
        trace: Whether to trace with torch.fx when there are no example inputs.

    Raises:
        InvalidTypeError: ``model`` is not a module, or a selector has an impossible type.
        InvalidValueError: a selector matches nothing, or the model rejects the example inputs.
        ConversionError: the model holds parameters that cannot be converted, each named with the cure.

    Example:
        >>> print(convert.plan(model))
    """
    return make_plan("plan", model, include, exclude, example_inputs, entry_points, trace)


def make_plan(
    verb: str,
    model: nn.Module,
    include: Any,
    exclude: Any,
    example_inputs: Any,
    entry_points: Mapping[str, Any] | None = None,
    trace: bool = True,
) -> ConversionPlan:
    """:func:`plan` for another public function, which errors name."""
    check_module(verb, model)
    owners = owners_of(model)
    selection = parse_selection(verb, model, include, exclude)
    refusal(verb, model, owners)
    calls = entries(verb, model, example_inputs, entry_points)
    if calls:
        analysis = probe_calls(verb, model, calls)
    elif trace:
        analysis = trace_forward(model)
    else:
        analysis = Analysis()
    rows = tuple(_row(parameter, places, selection, analysis, owners) for parameter, places in owners.values())
    last = _last(model, rows, owners, calls, include)
    return ConversionPlan(rows, type(model).__name__, analysis.source, last)


def _last(
    model: nn.Module,
    rows: tuple[PlanRow, ...],
    owners: dict[int, tuple[nn.Parameter, list[Place]]],
    calls: list[Entry],
    include: Any,
) -> str | None:
    """The only Bayesian layer of the converted model, if it is the last one. Other plans cost no forward."""
    forwards = [entry.inputs for entry in calls if not entry.method]
    modules: dict[int, nn.Module] = {id(m): m for m in model.modules() if isinstance(m, PosteriorModule)}
    for row, (_, places) in zip(rows, owners.values(), strict=True):
        if row.is_bayesian:
            modules |= {id(p.module): p.module for p in places if p.full_name not in row.lookups}
    proven = isinstance(include, ProvenLast)
    if len(modules) != 1 or not (forwards or proven):
        return None
    paths: set[str | None] = {proven_last(model, inputs) for inputs in forwards} or {str(include)}
    path = paths.pop()
    return path if not paths and path is not None and id(model.get_submodule(path)) in modules else None


def _row(
    parameter: nn.Parameter,
    places: list[Place],
    selection: Selection,
    analysis: Analysis,
    owners: dict[int, tuple[nn.Parameter, list[Place]]],
) -> PlanRow:
    reason = why_deterministic(parameter, places, selection, analysis)
    lookups = [] if reason else _lookups(places, selection)
    first = next((p for p in places if p.is_local), places[0])
    if reason is None and first.is_local and first.name != "weight":
        # A bias follows the weight of its layer.
        weight = parameters_of(first.module)["weight"]
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
        prunable=reason is None and all(_prunable(parameter, p, analysis) for p in places if p not in lookups),
        reason=reason or _remark(parameter, places, analysis),
        lookups=tuple(p.full_name for p in lookups),
    )


def _lookups(places: list[Place], selection: Selection) -> list[Place]:
    """Tables that share the Parameter with what ``include`` selects, and are not selected themselves."""
    selected = [p for p in places if selection.includes(p.path, p.module, p.name)]
    left = [p for p in places if is_embedding(p) and p not in selected]
    return left if any(not is_embedding(p) for p in selected) else []


def _calls(parameter: nn.Parameter, places: list[Place], analysis: Analysis) -> int | None:
    """How often the owning modules are called; None where a trace looks into the module and does not see its calls."""
    calls = sum(analysis.calls[path] for path in {p.path for p in places})
    looked_into = analysis.source == "fx" and id(parameter) in analysis.seen and not any(p.is_local for p in places)
    return None if not analysis.known or (looked_into and not calls) else calls


def _is_posterior_tensor(place: Place) -> bool:
    """Whether the Parameter is a mean or rho already."""
    if not isinstance(place.module, PosteriorModule):
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
