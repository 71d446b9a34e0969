"""From deterministic to Bayesian: ``bayesify``.

It returns the user's own model, a copy unless ``inplace=True``. Everything is checked and every tensor is made before
the first module changes. If a change fails nevertheless, all earlier ones are undone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, TypeVar

import torch
from torch import Tensor, nn

from bensemble.checks import check_module
from bensemble.errors import ConversionError, InvalidTypeError, refuse
from bensemble.layers.class_choice import bayesian_class
from bensemble.layers.linear_in_weights import LinearOpLayer, check_estimator, check_variance_dtype
from bensemble.layers.swap import Alias, NewPosterior, make_bayesian, restorer
from bensemble.layers.weights import PosteriorModule
from bensemble.torch_internals import parameters_of

from ..planning.conversion import make_plan
from ..planning.copying import copy_model
from ..planning.places import owners_of
from ..planning.rows import ConversionPlan
from .aliases import aliases_of
from .initial import initial_posterior
from .undoing import undone_on_failure

__all__ = ["bayesify"]

M = TypeVar("M", bound=nn.Module)


def bayesify(
    model: M,
    *,
    prior: Any = "empirical",
    prior_sigma: float | None = None,
    init_sigma: float | Callable[[str, Tensor], float | Tensor] | None = None,
    include: Any = None,
    exclude: Any = None,
    plan: ConversionPlan | None = None,
    example_inputs: Any = None,
    entry_points: Mapping[str, Any] | None = None,
    estimator: str = "local",
    variance_dtype: torch.dtype = torch.float32,
    inplace: bool = False,
) -> M:
    r"""Give the weights of a model Gaussian posteriors that start at the trained weights.

    Each weight becomes N(mu, sigma^2) with mu the trained weight; in ``eval()`` the model computes exactly what it did
    before. Class, methods, hooks, buffers, device, dtype, training flags, ``requires_grad`` and ties stay.

    Args:
        model: Any module. Layers that are Bayesian already stay as they are.
        prior: ``"empirical"`` (zero-mean normal, variance fitted to each tensor), ``"pretrained"`` (centred on the
            trained weights), ``"normal"``, ``"ard"`` (for pruning), a prior object, or a callable
            ``(name, weight) -> prior``; see :mod:`bensemble.priors`.
        prior_sigma: Standard deviation for ``"normal"`` (default 1) and ``"pretrained"`` (default: the init sigma).
        init_sigma: Standard deviation to start with: a number, or a callable ``(name, weight) -> float or Tensor``.
            Default is 0.05 times the root mean square of each tensor.
        include: What may become Bayesian; see :func:`convert.plan`.
        exclude: What must not; wins over ``include``.
        plan: A plan to execute exactly, instead of the arguments that make one.
        example_inputs: Inputs for a probe forward, where torch.fx cannot trace the model; a list for several. Where one
            layer alone becomes Bayesian, they also tell whether it is the last one, which its ``is_last`` records; so
            does an ``include`` that :func:`convert.last_layer` returned.
        entry_points: Methods other than forward that use weights, each with its inputs; see :func:`convert.plan`.
        estimator: How the twins draw noise in training: ``"local"`` per activation, ``"weights"`` one draw of the
            weights per call of the layer (as in prediction, at a higher gradient variance). For one draw per forward
            of the whole model, train inside :func:`bensemble.sampling`.
        variance_dtype: In what the ``"local"`` estimator computes the variance of float32 pre-activations.
            ``torch.bfloat16`` takes less time where the processor has instructions for it, and makes standard
            deviations wrong by up to 0.6 %; means stay exact. A checkpoint does not keep it.
        inplace: Change the model itself instead of a copy. In a copy, tensors with a history, such as kept activations,
            are detached.

    Returns:
        The Bayesian model, of the same class.

    Raises:
        InvalidTypeError, InvalidValueError: an argument that cannot work.
        ConversionError: parameters that cannot be converted, nothing to convert, or a plan of another model.

    Example:
        >>> bnn = convert.bayesify(model)
        >>> loss = bensemble.elbo_loss(F.cross_entropy(bnn(x), y), bensemble.kl_divergence(bnn), num_data=1000)
    """
    check_module("bayesify", model)
    check_estimator("bayesify", estimator)
    check_variance_dtype("bayesify", variance_dtype)
    if plan is None:
        plan = make_plan("bayesify", model, include, exclude, example_inputs, entry_points)
    elif any(given is not None for given in (include, exclude, example_inputs, entry_points)):
        raise InvalidTypeError(
            "bayesify: a plan excludes include, exclude, example_inputs and entry_points; pass them to plan()."
        )
    _check_plan(plan, model)
    target = model if inplace else copy_model("bayesify", model)
    changes = _changes(target, plan, prior, prior_sigma, init_sigma)
    classes = _classes(target, changes)
    undo: list[Callable[[], None]] = []
    with undone_on_failure(undo):
        for change, cls in zip(changes, classes, strict=True):
            undo.append(restorer(change.module))
            layer = make_bayesian(change.module, cls, change.posteriors, change.aliases)
            if isinstance(layer, LinearOpLayer):
                _set_up(layer, estimator, variance_dtype)
        if plan.last_layer is not None and isinstance(last := target.get_submodule(plan.last_layer), LinearOpLayer):
            last.is_last = True
    return target


def _set_up(layer: LinearOpLayer, estimator: str, variance_dtype: torch.dtype) -> None:
    """What differs from the defaults of the class becomes an attribute of the layer."""
    if estimator != layer.estimator:
        layer.estimator = estimator
    if variance_dtype != layer.variance_dtype:
        layer.variance_dtype = variance_dtype


@dataclass
class _Change:
    """What happens to one module; the fields are the arguments of ``bayesian_class`` and ``make_bayesian``."""

    module: nn.Module
    posteriors: dict[str, NewPosterior] = field(default_factory=dict)
    local: bool = True
    aliases: list[Alias] = field(default_factory=list)


def _changes(target: nn.Module, plan: ConversionPlan, prior: Any, prior_sigma: Any, init_sigma: Any) -> list[_Change]:
    """Every module that changes, with the posteriors of its parameters. Nothing is changed yet."""
    places_by_name = {places[0].full_name: (p, places) for p, places in owners_of(target).values()}
    changes: dict[int, _Change] = {}
    owners: dict[int, tuple[nn.Module, str]] = {}
    for row in plan.rows:
        if not row.is_bayesian:
            continue
        parameter, everywhere = places_by_name[row.name]
        places = [place for place in everywhere if place.full_name not in row.lookups]
        layer_weight = parameters_of(places[0].module).get("weight")
        rho, its_prior = initial_posterior(
            "bayesify", places[0].full_name, parameter, layer_weight, prior, prior_sigma, init_sigma
        )
        new = NewPosterior(parameter, rho, its_prior, row.prunable)
        owners[id(parameter)] = (places[0].module, places[0].name)
        for place in places:
            change = changes.setdefault(id(place.module), _Change(place.module))
            change.posteriors[place.name] = new
            change.local = change.local and place.is_local and row.tier == "local"
    for module, alias in aliases_of(target, owners):
        change = changes.setdefault(id(module), _Change(module))
        change.aliases.append(alias)
        change.local = False
    return list(changes.values())


def _classes(target: nn.Module, changes: list[_Change]) -> list[type[PosteriorModule]]:
    """The new class of each module; raises where a metaclass or hook refuses the subclass that is made of one."""
    classes, problems = [], []
    for change in changes:
        try:
            classes.append(bayesian_class(change.module, change.posteriors, change.local, change.aliases))
        except Exception as err:
            path = next(path for path, module in target.named_modules() if module is change.module)
            problems.append(
                f"'{path}' is a {type(change.module).__name__}, whose class cannot be extended ({err}); exclude it."
            )
    refuse("bayesify", problems)
    return classes


def _check_plan(plan: ConversionPlan, model: nn.Module) -> None:
    """Raise unless the plan was made for this model and leaves something to convert."""
    if not isinstance(plan, ConversionPlan):
        raise InvalidTypeError(f"bayesify: plan must be a ConversionPlan, got {type(plan).__name__}.")
    planned = {row.name: (row.shape, row.aliases) for row in plan.rows}
    owned = {
        places[0].full_name: (tuple(p.shape), tuple(place.full_name for place in places[1:]))
        for p, places in owners_of(model).values()
    }
    problems = [
        f"the plan has {_described(name, planned)}, got {_described(name, owned)} in the model; make the plan anew."
        for name in planned.keys() | owned.keys()
        if planned.get(name) != owned.get(name)
    ]
    refuse("bayesify", problems)
    if any(row.is_bayesian for row in plan.rows):
        return
    reasons = sorted({row.reason for row in plan.rows if row.tier != "posterior"})
    chosen = {"not included", "excluded"} & set(reasons)
    fitted = [row.name for row in plan.rows if row.tier == "posterior"]
    if fitted and not chosen:
        raise ConversionError(f"bayesify: nothing is left to convert in {plan.model}; it is Bayesian already.")
    reasons = reasons or ["it has no parameters"]
    if fitted:
        reasons.append(f"Bayesian already, such as '{fitted[0]}'")
    replaced = next((path for path, module in model.named_modules() if "forward" in vars(module)), None)
    if replaced is not None and any(reason.startswith("not reached") for reason in reasons):
        owner = f"'{replaced}'" if replaced else "the model itself"
        reasons = [f"the forward set on {owner} may run other layers than its own", *reasons]
    raise ConversionError(
        f"bayesify: nothing to convert in {plan.model}: {'; '.join(reasons[:5])}. print(plan(model)) shows each."
    )


def _described(name: str, known: dict[str, tuple[tuple[int, ...], tuple[str, ...]]]) -> str:
    if name not in known:
        return f"no '{name}'"
    shape, aliases = known[name]
    return f"'{name}' of shape {shape}" + (f", also called {', '.join(aliases)}" if aliases else "")
