"""From the name of a model to the model with its weights: import, look up, call, and say what went wrong where."""

from __future__ import annotations

import difflib
import importlib
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import Any

from torch import nn

from bensemble.errors import BensembleError, ConversionError, one_line

from ..weights.loading import load_with_notes
from .failures import WrongUsage
from .model_name import ModelName
from .printing import say

__all__ = ["build_model", "load_network", "look_up"]


def load_network(name: ModelName, weights: Path | None, key: str | None, stage: Callable[[str], None]) -> nn.Module:
    """Build the named model and load the weights; notes about the file are written to stderr."""
    if key is not None and weights is None:
        raise WrongUsage("--key: says where in a weights file to look, and there is none; add --weights FILE.")
    stage(f"Building {name.module}:{name.attribute}")
    network = build_model(name)
    if weights is not None:
        stage(f"Loading {weights}")
        network, notes = load_with_notes(network, weights, key)
        for note in notes:
            say(f"weights: {note}.")
    return network


def build_model(name: ModelName) -> nn.Module:
    """Import the module that a name names, and call or take the attribute."""
    model = look_up(name)
    if isinstance(model, nn.Module) and name.called:
        raise ConversionError(f"model: '{name.text}' calls a network; write its name without the parentheses.")
    if callable(model) and not isinstance(model, nn.Module):
        try:
            model = model(*name.args, **name.kwargs)
        except BensembleError:
            raise
        except (Exception, SystemExit) as err:
            raise ConversionError(f"model: '{name.text}' raised {_raised(err)}.") from err
    if not isinstance(model, nn.Module):
        raise ConversionError(
            f"model: '{name.text}' must give a torch.nn.Module, got an object of type {type(model).__name__}; "
            "name a network, or a function or class that builds one."
        )
    return model


def look_up(name: ModelName) -> Any:
    """The attribute that a name names, after importing its module; the current folder comes first, as in `python -m`.

    The folder stays on the path, for imports that the user's code makes later.
    """
    if sys.path[0] != os.getcwd():
        sys.path.insert(0, os.getcwd())
    try:
        found: Any = importlib.import_module(name.module)
    except (Exception, SystemExit) as err:
        raise ConversionError(
            f"model: importing '{name.module}' raised {_raised(err)}; "
            "install what is missing, or run bensemble in the folder that holds the module."
        ) from err
    path = name.module
    for part in name.attribute.split("."):
        try:
            found = getattr(found, part)
        except AttributeError as err:
            place = f"'{path}' ({source})" if (source := getattr(found, "__file__", None)) else f"'{path}'"
            near = " or ".join(map(repr, difflib.get_close_matches(part, dir(found)))) or "another name"
            raise ConversionError(f"model: {place} has no '{part}'; did you mean {near}?") from err
        path = f"{path}.{part}"
    return found


def _raised(err: BaseException) -> str:
    """What was raised, and the last line of the user's code that it passed, if any."""
    theirs = [
        step
        for step in traceback.extract_tb(err.__traceback__)
        if step.filename != __file__ and "importlib" not in step.filename and not step.filename.startswith("<")
    ]
    return one_line(err) + (f" ({theirs[-1].filename}, line {theirs[-1].lineno})" if theirs else "")
