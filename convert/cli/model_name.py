"""A model named on the command line: a call with literal arguments, read with `ast` and never evaluated.

    timm:create_model('vit_small_patch16_224', num_classes=7)
    torchvision.models:resnet18(weights=None)
    mymodel:build                    a function or class, called without arguments
    mymodel:net                      a network that the module holds already

A module stands left of the colon. A dotted attribute, with or without a call, stands right of it.
"""

from __future__ import annotations

import ast
from dataclasses import dataclass, field
from typing import Any

from .failures import WrongUsage

__all__ = ["ModelName", "parse_model_name"]

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
    if module.endswith(".py") or not all(part.isidentifier() for part in module.split(".")):
        name = module.removesuffix(".py").lstrip("./").replace("/", ".")
        right = f"write {name}" if module.endswith(".py") else "write nets.big for nets/big.py"
        raise WrongUsage(f"model: {module!r} in {text!r} is not the name of a module; {right}; {FORM}.")
    try:
        node = ast.parse(target, mode="eval").body
    except (SyntaxError, ValueError, RecursionError, MemoryError) as err:
        raise WrongUsage(f"model: {target!r} is not a call in Python's spelling; {FORM}.") from err
    if not isinstance(node, ast.Call):
        return ModelName(text, module, _dotted(node))
    kwargs = {keyword.arg: _literal(keyword.value) for keyword in node.keywords if keyword.arg is not None}
    if len(kwargs) < len(node.keywords):
        raise WrongUsage(f"model: {target!r} gives an argument twice or with **; write each once, as name=value.")
    return ModelName(text, module, _dotted(node.func), True, tuple(map(_literal, node.args)), kwargs)


def _dotted(node: ast.expr) -> str:
    """The dotted name that a node spells."""
    if isinstance(node, ast.Name):
        return node.id
    if isinstance(node, ast.Attribute):
        return f"{_dotted(node.value)}.{node.attr}"
    raise WrongUsage(f"model: '{ast.unparse(node)}' is not a dotted name; {FORM}.")


def _literal(node: ast.expr) -> Any:
    try:
        return ast.literal_eval(node)
    except (ValueError, TypeError, SyntaxError, RecursionError, MemoryError) as err:
        raise WrongUsage(
            f"model: the argument '{ast.unparse(node)}' is not literal, and nothing is evaluated; allowed are text in "
            "quotes, numbers, True, False, None, and tuples, lists, dicts or sets of these."
        ) from err
