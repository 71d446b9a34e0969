"""From the name of a model to the model: import, look up, call, and say what went wrong where."""

from __future__ import annotations

import difflib
import functools
import importlib
import inspect
import sys
from pathlib import Path
from types import ModuleType
from typing import Any

from torch import nn

from bensemble.errors import BensembleError, ConversionError

from .current_folder import OURS, is_taken, local_source, make_importable
from .failures import first_line
from .model_name import ModelName

__all__ = ["build_model", "find_function"]


def build_model(name: ModelName, folder: Path | None = None) -> nn.Module:
    """Import the module that a name names, and call or take the attribute.

    Args:
        name: What the user named.
        folder: Where modules may lie beside the installed ones; the current folder by default.

    Raises:
        ConversionError: The module or attribute does not exist, the arguments do not fit, something in the user's code
            raised, or the result is not a `torch.nn.Module`. Says which, and what to do.
    """
    module = _import(name, folder or Path.cwd())
    target = _look_up(name, module)
    if isinstance(target, nn.Module):
        if name.called:
            raise ConversionError(
                f"model: '{name.module}:{name.attribute}' is a network already; write it without the parentheses."
            )
        return target
    if not callable(target):
        raise ConversionError(
            f"model: '{name.module}:{name.attribute}' is of type {type(target).__name__}; "
            "name a function, a class or a torch.nn.Module."
        )
    _refuse_standard_library(name, target)
    _check_arguments(name, target)
    model = _call(name, target)
    if not isinstance(model, nn.Module):
        raise ConversionError(
            f"model: '{name.module}:{name.attribute}' returns {_describe(model)}; "
            "name a function that returns a torch.nn.Module."
        )
    return model


def find_function(name: ModelName, folder: Path | None = None) -> Any:
    """The function that a name without arguments names, such as ``evaluate`` of a user's module.

    Raises:
        ConversionError: The module or attribute does not exist, or cannot be called.
    """
    found = _look_up(name, _import(name, folder or Path.cwd()))
    if name.called or not callable(found):
        raise ConversionError(
            f"evaluate: '{name.text}' must name a function that takes a model and returns a number, without arguments."
        )
    return found


def _import(name: ModelName, folder: Path) -> ModuleType:
    top = name.module.partition(".")[0]
    source = local_source(top, folder)
    loaded = sys.modules.get(top)
    if source is not None and loaded is not None and loaded.__file__ == str(source):
        source = None
    if source is not None and (is_taken(top) or loaded is not None):
        raise ConversionError(
            f"model: '{source.name}' in this folder has the name of a module that Python or bensemble uses itself; "
            f"rename it, for example to 'my_{source.name}'."
        )
    if source is not None:
        make_importable(folder)
    try:
        return importlib.import_module(name.module)
    except ModuleNotFoundError as err:
        raise ConversionError(_not_found(name.module, err, folder)) from err
    except (Exception, SystemExit) as err:
        raise ConversionError(
            f"model: importing '{name.module}' raised {_place(err)}{_shadow_hint(err, folder)}."
        ) from err


def _not_found(module: str, err: ModuleNotFoundError, folder: Path) -> str:
    missing = err.name or module
    if module != missing and not module.startswith(f"{missing}."):
        return f"model: '{module}' imports '{missing}', which is not installed; install the package that has it."
    parent = missing.rpartition(".")[0]
    if parent:
        return f"model: '{parent}' is there, '{missing}' is not; look up which of its modules holds the model."
    near = difflib.get_close_matches(missing, [path.stem for path in folder.iterdir()], n=1, cutoff=0.6)
    guess = f"did you mean '{near[0]}'? Otherwise " if near else ""
    return (
        f"model: no module '{missing}' is installed or in this folder; {guess}"
        f"install the package that has it, or run bensemble in the folder that holds '{missing}.py'."
    )


def _shadow_hint(err: BaseException, folder: Path) -> str:
    """The cure where the user's module wanted a file whose name is taken."""
    wanted = err.name if isinstance(err, ImportError) else None
    if wanted in OURS and (folder / f"{wanted}.py").exists():
        return f"; '{wanted}.py' here has the name of a package that bensemble uses itself, rename it"
    return ""


def _look_up(name: ModelName, module: ModuleType) -> Any:
    """The attribute, one step at a time; importing submodules on the way where a package does not."""
    found: Any = module
    path = name.module
    for part in name.attribute.split("."):
        try:
            found = getattr(found, part)
        except AttributeError as err:
            raise ConversionError(_no_attribute(path, found, part)) from err
        path = f"{path}.{part}"
    return found


def _no_attribute(path: str, owner: Any, part: str) -> str:
    names = [public for public in dir(owner) if not public.startswith("_")]
    near = difflib.get_close_matches(part, names, n=3, cutoff=0.6)
    source = getattr(owner, "__file__", None) if isinstance(owner, ModuleType) else None
    place = f"'{path}' ({source})" if source else f"'{path}'"
    if near:
        return f"model: {place} has no '{part}'; did you mean {' or '.join(map(repr, near))}?"
    own = [public for public in names if getattr(getattr(owner, public), "__module__", None) == path]
    return f"model: {place} has no '{part}'; it defines {', '.join(own[:8]) or 'no function or class'}."


def _refuse_standard_library(name: ModelName, target: Any) -> None:
    """Nothing in the standard library builds a network, and calling it from a command line is never meant."""
    called = target.func if isinstance(target, functools.partial) else target
    home = getattr(called, "__module__", None) or ""
    if home.partition(".")[0] in sys.stdlib_module_names:
        raise ConversionError(
            f"model: '{name.module}:{name.attribute}' belongs to Python's standard library, which builds no networks; "
            "name a function of yours or of a model library."
        )


def _check_arguments(name: ModelName, target: Any) -> None:
    try:
        signature = inspect.signature(target)
    except (TypeError, ValueError):
        return
    try:
        signature.bind(*name.args, **name.kwargs)
    except TypeError as err:
        shown = ", ".join(str(parameter) for parameter in signature.parameters.values())
        raise ConversionError(
            f"model: '{name.module}:{name.attribute}' takes ({shown}): {err}; "
            f'write the call with its arguments, "{name.module}:{name.attribute}(...)".'
        ) from err


def _call(name: ModelName, target: Any) -> Any:
    try:
        return target(*name.args, **name.kwargs)
    except BensembleError:
        raise
    except (Exception, SystemExit) as err:
        raise ConversionError(f"model: '{name.text}' raised {_place(err)}.") from err


def _place(err: BaseException) -> str:
    """What was raised, and the last line of the user's own code that it passed."""
    if isinstance(err, SyntaxError):
        return f"{type(err).__name__}: {err.msg} ({err.filename}, line {err.lineno})"
    step, place = err.__traceback__, ""
    while step is not None:
        code = step.tb_frame.f_code
        if (
            not code.co_filename.startswith("<")
            and code.co_filename != __file__
            and "importlib" not in code.co_filename
        ):
            place = f" ({code.co_filename}, line {step.tb_lineno})"
        step = step.tb_next
    return f"{first_line(err)}{place}"


def _describe(value: Any) -> str:
    if isinstance(value, (tuple, list)):
        inner = ", ".join(type(item).__name__ for item in value[:4])
        return f"a {type(value).__name__} of ({inner})"
    return "None" if value is None else f"an object of type {type(value).__name__}"
