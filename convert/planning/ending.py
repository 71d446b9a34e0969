"""The last layer of a model: the one whose output becomes the model's output."""

from __future__ import annotations

import re
import warnings
from collections.abc import Iterable
from typing import Any, NamedTuple

import torch
from torch import nn

from bensemble.checks import check_module
from bensemble.errors import InvalidValueError, one_line
from bensemble.models.outputs import OutputSelector
from bensemble.models.undisturbed import undisturbed

from .copying import check_shapes, traced_copy
from .cut_runs import LINKS, Survey, Trials
from .readout import is_link, is_moved, is_resized

__all__ = ["ProvenLast", "last_layer", "proven_last"]

#: Operations of autograd that only move elements, or multiply them by one number; no reason for a refusal.
_MOVING = re.compile(
    "alias|as_strided|cat|clone|contiguous|copy_slices|div|expand|flip|gather|index|index_select|mul|narrow|permute|"
    "repeat|reshape.*|select|slice|split.*|squeeze|stack|t|to_copy|transpose|unbind|unflatten|unsafe_view|unsqueeze|"
    "view|view_as"
)
_CURE = "name what becomes Bayesian yourself with include="


class Last(NamedTuple):
    """A last layer.

    Attributes:
        path: Its path; empty for the root.
        link: What turns its logits into the output: a softmax or sigmoid, None without one.
    """

    path: str
    link: str | None


class ProvenLast(str):
    """The path of a layer that :func:`last_layer` proved to give the logits, so that nobody has to prove it again."""

    __slots__ = ()


def last_layer(model: nn.Module, example_inputs: Any, *, output: OutputSelector | None = None) -> str:
    """The name of the layer whose output becomes the model's output, for ``bayesify(model, include=...)``.

    What comes after the layer may move, pick and cast its outputs, multiply them by one constant (a temperature), and
    resize or average positions, as segmenters do. That is observed and proven on the example inputs, in three to eight
    forwards of a copy in evaluation mode; what Python does differently for other inputs is not seen. The model and the
    random state do not change; files and global variables that a forward writes do.

    Args:
        model: Any module, deterministic or Bayesian, traceable or not.
        example_inputs: Inputs of one call: a tensor, a tuple of arguments, or a mapping of keyword arguments.
        output: Which output is meant: a key or dotted path, an index, or a callable. Default: the entry ``logits`` or
            ``out``, or else the first floating tensor.

    Returns:
        A dotted name, or ``""`` where the model itself is that layer. ``bayesify`` and ``plan`` know by it that the
        layer is the last one.

    Raises:
        InvalidTypeError: ``model`` is not a module.
        InvalidValueError: The model rejects the example inputs, or there is no such layer: something nonlinear follows
            it, several layers are added, a layer is called twice, or a weight is used without a call of its layer.

    Warns:
        UserWarning: The model ends with a softmax or sigmoid, while likelihoods want logits.

    Example:
        >>> bnn = convert.bayesify(model, include=convert.last_layer(model, x))
    """
    check_module("last_layer", model)
    found = _find(model, example_inputs, output)
    if found.link is not None:
        warnings.warn(
            f"last_layer: a {found.link} follows {_at(found.path)}; likelihoods and predict() want the logits before "
            "it, so take it out of the model's forward.",
            stacklevel=2,
        )
        return found.path
    return ProvenLast(found.path)


def proven_last(model: nn.Module, example_inputs: Any) -> str | None:
    """The last layer where there is one whose outputs are the logits, else None. It never raises."""
    try:
        found = _find(model, example_inputs, None)
    except Exception:  # the model runs without it
        return None
    return found.path if found.link is None else None


def _find(model: nn.Module, inputs: Any, output: OutputSelector | None) -> Last:
    check_shapes("last_layer", model)
    with undisturbed(model), torch.inference_mode(False):
        copied = traced_copy(model)
        if copied is None:
            raise InvalidValueError(f"last_layer: {type(model).__name__} cannot be copied for a trial run; {_CURE}.")
        trials = Trials(copied[0].eval(), inputs, output)
        return _proven(trials, _surveyed(trials))


def _surveyed(trials: Trials) -> Survey:
    try:
        survey = trials.survey()
    except InvalidValueError:
        raise
    except Exception as err:
        if trials.runs():
            raise InvalidValueError(
                f"last_layer: the forward needs the history of its layers' outputs, which the trial cuts off, got "
                f"{one_line(err)}; where it takes derivatives of them, there is no last layer: {_CURE}."
            ) from err
        raise InvalidValueError(
            f"last_layer: the model rejects example_inputs ({one_line(err)}); pass what its forward takes: a tensor, "
            "a tuple of arguments, or a mapping of keyword arguments."
        ) from err
    if survey.output.is_meta:
        raise InvalidValueError("last_layer: the output has no values, got the meta device; load the weights first.")
    return survey


def _proven(trials: Trials, survey: Survey) -> Last:
    """The only layer that reaches the output, if the proof succeeds."""
    found = sorted(set(survey.layers), key=list(survey.calls).index)
    if not found:
        raise InvalidValueError(f"last_layer: {_no_layer(survey)}")
    if len(found) > 1:
        by = _operations(survey) or "other operations"
        raise InvalidValueError(
            f"last_layer: the output must come from one layer, got {_listed(map(_at, found))} joined by {by}; {_CURE}."
        )
    (path,) = found
    if survey.calls[path] > 1:
        raise InvalidValueError(
            f"last_layer: {_at(path)} must be called once in a forward, got {survey.calls[path]} calls, which share "
            f"the noise of one weight; give each call a layer of its own, or {_CURE}."
        )
    names = [_plain(step) for step, _ in survey.steps]
    link = next((name for name in names if name in LINKS.values()), None)
    output, leaf = (survey.output, survey.leaves[0]) if link is None else trials.replaced(path, without_links=True)
    if link is not None and not is_link(link, survey.output, output):
        raise InvalidValueError(f"last_layer: {_not_linear(path, survey)}")
    arguments = (trials, path, output, leaf, link is not None)
    if is_moved(*arguments) or is_resized(*arguments):
        return Last(path, link)
    raise InvalidValueError(f"last_layer: {_not_linear(path, survey)}")


def _no_layer(survey: Survey) -> str:
    if survey.parameters:
        return (
            f"the output must come from the call of a layer, got {_listed(map(repr, survey.parameters))}, used by "
            f"{_operations(survey) or 'a function'} without such a call; call a Linear or a convolution, or {_CURE}."
        )
    without = " its forward runs without gradients, or" if survey.calls else ""
    return (
        f"the output must come from the call of a layer, got none among {len(survey.calls)} called Linear layers and "
        f"convolutions;{without} its operations cannot be seen; {_CURE}."
    )


def _not_linear(path: str, survey: Survey) -> str:
    """What stands between the layer and the output."""
    between = _operations(survey)
    if survey.weights:
        return (
            f"the output must come from the call of a layer, got {_listed(map(repr, survey.weights))} after "
            f"{_at(path)}, used by {between or 'a function'} without such a call; call the layer, or {_CURE}."
        )
    read = f" with {_listed(map(repr, survey.parameters))}" if survey.parameters else ""
    return (
        f"the output must be the output of {_at(path)} times one constant, got {between or 'other elements'}{read} "
        f"after it; end the model with the layer, or {_CURE}."
    )


def _operations(survey: Survey) -> str:
    """The operations that do more than move elements, in the order of the forward; all where there are no such."""
    found: dict[str, None] = {}
    plain: dict[str, None] = {}
    for step, module in reversed(survey.steps):
        name = _plain(step)
        (plain if _MOVING.fullmatch(name) else found)[f"{name} ('{module}')" if module else name] = None
    return _listed(found or plain)


def _plain(step: str) -> str:
    """``NativeLayerNormBackward0`` and ``torch::autograd::CopySlices`` as ``native_layer_norm`` and ``copy_slices``."""
    name = re.sub(r"(Forward)?Backward\d*$", "", step.rpartition(":")[2])
    return re.sub(r"(?<=[a-z0-9])(?=[A-Z][a-z])", "_", name).lower()


def _at(path: str) -> str:
    return f"'{path}'" if path else "the model itself"


def _listed(names: Iterable[str], most: int = 5) -> str:
    found = list(dict.fromkeys(names))
    return ", ".join(found[:most]) + (f" and {len(found) - most} more" if len(found) > most else "")
