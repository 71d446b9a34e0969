"""A model named on the command line: a call with literal arguments, read with `ast` and never evaluated.

    timm:create_model('vit_small_patch16_224', num_classes=7)
    torchvision.models:resnet18(weights=None)
    mymodel:build                    a function or class, called without arguments
    mymodel:net                      a network that the module holds already

Left of the colon stands a module, right of it a dotted attribute, with or without a call.
"""

from __future__ import annotations

import ast
import re
from dataclasses import dataclass, field
from typing import Any

from .failures import WrongUsage

__all__ = ["ModelName", "parse_model_name"]

ALLOWED = "allowed are text in quotes, numbers, True, False, None, and tuples, lists, dicts or sets of these"
FORM = 'write "module:function(arguments)", for example "timm:create_model(\'resnet18\', num_classes=7)"'


@dataclass(frozen=True)
class ModelName:
    """What a text names.

    Attributes:
        text: As the user wrote it.
        module: Dotted name of the module to import.
        attribute: Dotted name inside the module.
        called: True if the text has parentheses.
        args: Positional arguments of the call.
        kwargs: Named arguments of the call.
    """

    text: str
    module: str
    attribute: str
    called: bool = False
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)


def parse_model_name(text: str) -> ModelName:
    """Read ``module:attribute`` or ``module:attribute(literals)``.

    Raises:
        WrongUsage: The text is anything else; says what and what is allowed.
    """
    module, colon, target = text.strip().partition(":")
    if not colon or not target.strip():
        raise WrongUsage(f"model: {text!r} does not say where the model comes from; {FORM}.")
    _check_module(text, module)
    try:
        node = ast.parse(target.strip(), mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as err:
        raise WrongUsage(f"model: {target.strip()!r} is not a call in Python's spelling; {FORM}.") from err
    if not isinstance(node, ast.Call):
        return ModelName(text, module, _dotted(node))
    args = tuple(_literal(argument) for argument in node.args)
    kwargs: dict[str, Any] = {}
    for keyword in node.keywords:
        if keyword.arg is None or keyword.arg in kwargs:
            fact = "cannot be unpacked with **" if keyword.arg is None else f"give {keyword.arg!r} twice"
            raise WrongUsage(f"model: the arguments {fact} in {target.strip()!r}; write each once, as name=value.")
        kwargs[keyword.arg] = _literal(keyword.value)
    return ModelName(text, module, _dotted(node.func), True, args, kwargs)


def _check_module(text: str, module: str) -> None:
    if module.endswith(".py") or "/" in module or "\\" in module:
        name = ".".join(part for part in re.split(r"[/\\]", module.removesuffix(".py")) if part not in ("", "."))
        raise WrongUsage(
            f"model: {module!r} is a file, a module is wanted; in the folder that holds it write '{name}:...'."
        )
    if not all(part.isidentifier() for part in module.split(".")):
        raise WrongUsage(f"model: {module!r} in {text!r} is not the name of a module; {FORM}.")
    _refuse_dunder(module)


def _dotted(node: ast.expr) -> str:
    """The dotted name that a node spells."""
    if isinstance(node, ast.Name):
        _refuse_dunder(node.id)
        return node.id
    if isinstance(node, ast.Attribute):
        _refuse_dunder(node.attr)
        return f"{_dotted(node.value)}.{node.attr}"
    raise WrongUsage(f"model: '{ast.unparse(node)}' is not a dotted name; {FORM}.")


def _refuse_dunder(name: str) -> None:
    for part in name.split("."):
        if part.startswith("__"):
            raise WrongUsage(
                f"model: {part!r} is a name with two underscores, which none may be; name a public function."
            )


def _literal(node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError) as err:
        raise WrongUsage(_why_not(node)) from err


def _why_not(node: ast.expr) -> str:
    """Say which part of an argument is not literal."""
    spelled = ast.unparse(node)
    for inner in ast.walk(node):
        if isinstance(inner, ast.Call):
            return (
                f"model: the argument '{spelled}' calls '{ast.unparse(inner.func)}', nothing is evaluated; {ALLOWED}."
            )
        if isinstance(inner, ast.Name):
            return (
                f"model: the argument '{spelled}' uses the name '{inner.id}', nothing is looked up; {ALLOWED} "
                f"(text: '{inner.id}' in quotes)."
            )
    return f"model: the argument '{spelled}' is not literal, nothing is evaluated; {ALLOWED}."
