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
    """The text as the user wrote it, and its parts; ``called`` says whether there are parentheses."""

    text: str
    module: str
    attribute: str
    called: bool = False
    args: tuple[Any, ...] = ()
    kwargs: dict[str, Any] = field(default_factory=dict)


def parse_model_name(text: str) -> ModelName:
    """Read ``module:attribute`` or ``module:attribute(literals)``; anything else is wrong usage."""
    module, colon, target = (part.strip() for part in text.partition(":"))
    if not colon or not target:
        raise WrongUsage(f"model: {text!r} does not say where the model comes from; {FORM}.")
    _check_module(module, text)
    try:
        node = ast.parse(target, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as err:
        raise WrongUsage(f"model: {target!r} is not a call in Python's spelling; {FORM}.") from err
    if not isinstance(node, ast.Call):
        return ModelName(text, module, _dotted(node))
    args = tuple(_literal(argument) for argument in node.args)
    return ModelName(text, module, _dotted(node.func), True, args, _named(node.keywords, target))


def _check_module(module: str, text: str) -> None:
    if module.endswith(".py") or "/" in module or "\\" in module:
        name = ".".join(part for part in re.split(r"[/\\]", module.removesuffix(".py")) if part not in ("", "."))
        raise WrongUsage(
            f"model: {module!r} is a file, a module is wanted; in the folder that holds it write '{name}:...'."
        )
    for part in module.split("."):
        if not part.isidentifier():
            raise WrongUsage(f"model: {module!r} in {text!r} is not the name of a module; {FORM}.")
        _check_public(part)


def _dotted(node: ast.expr) -> str:
    """The dotted name that a node spells."""
    if isinstance(node, ast.Name):
        return _check_public(node.id)
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{_check_public(node.attr)}"
    raise WrongUsage(f"model: '{ast.unparse(node)}' is not a dotted name; {FORM}.")


def _check_public(part: str) -> str:
    if part.startswith("__"):
        raise WrongUsage(f"model: {part!r} is a name with two underscores, which none may be; name a public function.")
    return part


def _named(keywords: list[ast.keyword], target: str) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for keyword in keywords:
        if keyword.arg is None or keyword.arg in found:
            fact = "cannot be unpacked with **" if keyword.arg is None else f"give {keyword.arg!r} twice"
            raise WrongUsage(f"model: the arguments {fact} in {target!r}; write each once, as name=value.")
        found[keyword.arg] = _literal(keyword.value)
    return found


def _literal(node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError) as err:
        raise WrongUsage(f"model: the argument '{ast.unparse(node)}' {_why_not(node)}") from err


def _why_not(node: ast.expr) -> str:
    """Which part of an argument is not literal."""
    for inner in ast.walk(node):
        if isinstance(inner, ast.Call):
            return f"calls '{ast.unparse(inner.func)}', nothing is evaluated; {ALLOWED}."
        if isinstance(inner, ast.Name):
            name = inner.id
            return f"uses the name '{name}', nothing is looked up; {ALLOWED} (text: '{name}' in quotes)."
    return f"is not literal, nothing is evaluated; {ALLOWED}."
