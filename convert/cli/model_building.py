"""From the name of a model to the model with its weights: import, look up, call, and say what went wrong where."""

from __future__ import annotations

import difflib
import functools
import importlib
import inspect
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from bensemble.errors import BensembleError, ConversionError, one_line

from .failures import WrongUsage
from .model_name import ModelName
from .printing import say
from .weights import load_weights

__all__ = ["build_model", "find_function", "load_network"]


def load_network(name: ModelName, weights: Path | None, key: str | None, stage: Callable[[str], None]) -> nn.Module:
    """Build the named model and put the weights in; what was chosen on the way is said on stderr."""
    if key is not None and weights is None:
        raise WrongUsage("--key: says where in a weights file to look, and there is none; add --weights FILE.")
    stage(f"Building {name.module}:{name.attribute}")
    network = build_model(name)
    if weights is not None:
        stage(f"Loading {weights}")
        network, notes = load_weights(network, weights, key)
        for note in notes:
            say(f"weights: {note}.")
    return network


def build_model(name: ModelName) -> nn.Module:
    """Import the module that a name names, and call or take the attribute.

    Raises:
        ConversionError: What of this failed, and what to do.
    """
    target, place = _look_up(name), f"'{name.module}:{name.attribute}'"
    if isinstance(target, nn.Module):
        if name.called:
            raise ConversionError(f"model: {place} is a network already; write it without the parentheses.")
        return target
    if not callable(target):
        kind = type(target).__name__
        raise ConversionError(f"model: {place} is of type {kind}; name a function, a class or a torch.nn.Module.")
    _refuse_standard_library(target, place)
    _check_arguments(name, target, place)
    try:
        model = target(*name.args, **name.kwargs)
    except BensembleError:
        raise
    except (Exception, SystemExit) as err:
        raise ConversionError(f"model: '{name.text}' raised {_raised(err)}.") from err
    if not isinstance(model, nn.Module):
        raise ConversionError(
            f"model: {place} returns {_described(model)}; name a function that returns a torch.nn.Module."
        )
    return model


def find_function(name: ModelName) -> Callable[..., Any]:
    """The function that a name without arguments names, such as a score in a user's module."""
    found = _look_up(name)
    if name.called or not callable(found):
        raise ConversionError(
            f"evaluate: '{name.text}' must name a function that takes a model and returns a number, without arguments."
        )
    return found


def _look_up(name: ModelName) -> Any:
    found: Any = _import(name.module)
    path = name.module
    for part in name.attribute.split("."):
        try:
            found = getattr(found, part)
        except AttributeError as err:
            raise ConversionError(_no_attribute(path, found, part)) from err
        path = f"{path}.{part}"
    return found


def _import(module: str) -> ModuleType:
    """Import a module, the current folder first, as `python -m` does; it stays on the path, for later imports."""
    if sys.path[0] != os.getcwd():
        sys.path.insert(0, os.getcwd())
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as err:
        raise ConversionError(_not_found(module, err.name or module)) from err
    except (Exception, SystemExit) as err:
        raise ConversionError(f"model: importing '{module}' raised {_raised(err)}.") from err


def _not_found(module: str, missing: str) -> str:
    if module != missing and not module.startswith(f"{missing}."):
        return f"model: '{module}' imports '{missing}', which is not installed; install the package that has it."
    parent = missing.rpartition(".")[0]
    if parent:
        return f"model: '{parent}' is there, '{missing}' is not; look up which of its modules holds the model."
    near = difflib.get_close_matches(missing, [path.stem for path in Path.cwd().iterdir()], n=1)
    guess = f"did you mean '{near[0]}'? Otherwise " if near else ""
    return (
        f"model: no module '{missing}' is installed or in this folder; {guess}"
        f"install the package that has it, or run bensemble in the folder that holds '{missing}.py'."
    )


def _no_attribute(path: str, owner: Any, part: str) -> str:
    names = [public for public in dir(owner) if not public.startswith("_")]
    source = getattr(owner, "__file__", None) if isinstance(owner, ModuleType) else None
    place = f"'{path}' ({source})" if source else f"'{path}'"
    near = difflib.get_close_matches(part, names)
    if near:
        return f"model: {place} has no '{part}'; did you mean {' or '.join(map(repr, near))}?"
    own = [public for public in names if getattr(getattr(owner, public), "__module__", None) == path]
    return f"model: {place} has no '{part}'; it defines {', '.join(own[:8]) or 'no function or class'}."


def _refuse_standard_library(target: Any, place: str) -> None:
    """Nothing in the standard library builds a network, and calling it from a command line is never meant."""
    called = target.func if isinstance(target, functools.partial) else target
    home = getattr(called, "__module__", None) or ""
    if home.partition(".")[0] in sys.stdlib_module_names:
        raise ConversionError(
            f"model: {place} belongs to Python's standard library, which builds no networks; "
            "name a function of yours or of a model library."
        )


def _check_arguments(name: ModelName, target: Any, place: str) -> None:
    try:
        signature = inspect.signature(target)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(*name.args, **name.kwargs)
    except TypeError as err:
        takes = ", ".join(map(str, signature.parameters.values()))
        call = f'"{name.module}:{name.attribute}(...)"'
        raise ConversionError(
            f"model: {place} takes ({takes}): {err}; write the call with its arguments, {call}."
        ) from err


def _raised(err: BaseException) -> str:
    """What was raised, and the last line that it passed of code that is not ours nor the import system's."""
    if isinstance(err, SyntaxError):
        return f"{type(err).__name__}: {err.msg} ({err.filename}, line {err.lineno})"
    theirs = [
        step
        for step in traceback.extract_tb(err.__traceback__)
        if step.filename != __file__ and "importlib" not in step.filename and not step.filename.startswith("<")
    ]
    return one_line(err) + (f" ({theirs[-1].filename}, line {theirs[-1].lineno})" if theirs else "")


def _described(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        return f"a {type(value).__name__} of ({', '.join(type(item).__name__ for item in value[:4])})"
    return "None" if value is None else f"an object of type {type(value).__name__}"
