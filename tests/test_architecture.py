"""Rooms import downwards only, in the order of docs/architecture.md, and private names of torch stay in one of them."""

from __future__ import annotations

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from torch import fx, nn
from torch.nn.utils import prune as torch_prune

ROOT = Path(__file__).parents[1]
PRIVATE_HOME, MOST_PRIVATE = "bensemble.torch_internals", 40


class Code:
    """The modules of two packages, and who imports whom: all imports, also inside functions and for type checkers."""

    def __init__(self, root: Path) -> None:
        self.root, self.files = root, dict[str, Path]()
        for package in ("bensemble", "convert"):
            for path in sorted((root / package).rglob("*.py")):
                parts = path.relative_to(root).with_suffix("").parts
                self.files[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
        self.trees = {name: ast.parse(path.read_text()) for name, path in self.files.items()}
        self.packages = {name for name, path in self.files.items() if path.name == "__init__.py"}

    def room(self, name: str) -> str:
        """The folder of a module; a module that lies in the root of its package is a room of its own."""
        if name in self.packages:
            return name
        folder = name.rpartition(".")[0]
        return folder if "." in folder else name

    def imports(self, name: str) -> Iterator[tuple[int, str]]:
        """(line, module) for every import of a module of ours."""
        package = name if name in self.packages else name.rpartition(".")[0]
        for node in ast.walk(self.trees[name]):
            if isinstance(node, ast.Import):
                wanted = [alias.name for alias in node.names]
            elif isinstance(node, ast.ImportFrom):
                above = package.split(".")
                base = ".".join(above[: len(above) - node.level + 1]) if node.level else ""
                base = ".".join(filter(None, (base, node.module)))
                wanted = [f"{base}.{alias.name}" for alias in node.names]
                wanted = [full if full in self.files else base for full in wanted]
            else:
                continue
            yield from ((node.lineno, module) for module in wanted if module in self.files and module != name)


def written_order() -> list[str]:
    """The rooms as the architecture page lists them, the lowest first."""
    page = (ROOT / "docs" / "architecture.md").read_text()
    section = page.partition("## Rooms")[2].partition("\n## ")[0]
    return re.findall(r"^\| `([\w.]+)` \|", section, re.MULTILINE)


def upward_arrows(code: Code, order: list[str]) -> list[str]:
    """Every import of a room from one that does not stand before it, with its line."""
    floor = {room: number for number, room in enumerate(order)}
    return sorted(
        f"{code.files[name].relative_to(code.root)}:{line} imports {target}"
        for name in code.files
        for line, target in code.imports(name)
        if code.room(name) != code.room(target) and floor[code.room(target)] > floor[code.room(name)]
    )


def circles(code: Code) -> list[str]:
    """Every import circle between modules, as the two lines that close it."""
    arrows = {name: {target: line for line, target in code.imports(name)} for name in code.files}
    reached: dict[str, set[str]] = {}
    for name in arrows:
        seen, waiting = set[str](), list(arrows[name])
        while waiting:
            if (module := waiting.pop()) not in seen:
                seen.add(module)
                waiting += arrows[module]
        reached[name] = seen
    return sorted(
        f"{code.files[name].relative_to(code.root)}:{line} imports {target}, which comes back to it"
        for name, targets in arrows.items()
        for target, line in targets.items()
        if name in reached[target]
    )


def test_every_room_stands_in_the_order_and_every_room_of_the_order_exists() -> None:
    code, order = Code(ROOT), written_order()
    assert len(order) == len(set(order))
    assert set(order) == {code.room(name) for name in code.files}


def test_no_import_runs_upwards() -> None:
    assert upward_arrows(Code(ROOT), written_order()) == []


def test_no_modules_import_each_other_in_a_circle() -> None:
    assert circles(Code(ROOT)) == []


KINDS = {
    "plain": "from ..high import thing\n",
    "absolute": "import bensemble.high\n",
    "module": "from .. import high\n",
    "local": "def late():\n    from ..high import thing\n",
    "for type checkers": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from ..high import thing\n",
}


@pytest.mark.parametrize("kind", KINDS)
def test_the_checks_see_every_kind_of_import(kind: str, tmp_path: Path) -> None:
    files = {"bensemble/high.py": "from .low.file import other\n", "bensemble/low/file.py": KINDS[kind]}
    for name in (*files, "bensemble/__init__.py", "bensemble/low/__init__.py"):
        path = tmp_path / name
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(files.get(name, ""))
    code = Code(tmp_path)
    (arrow,) = upward_arrows(code, ["bensemble.low", "bensemble.high", "bensemble"])
    assert re.fullmatch(r"bensemble/low/file\.py:\d imports bensemble\.high", arrow)
    assert len(circles(code)) == 2


def test_each_folder_says_what_lives_there_and_what_does_not() -> None:
    code = Code(ROOT)
    for name in code.packages:
        text = ast.get_docstring(code.trees[name]) or ""
        assert text.count(".") >= 2, (
            f"{name}/__init__.py should say in two sentences what lives there, and what may not"
        )


def torchs_private_names() -> set[str]:
    """Names with one underscore in front that objects of torch have."""
    things = [nn.Module(), nn.Conv2d(1, 1, 1), nn.ConvTranspose2d(1, 1, 1), nn.LSTM(1, 1), nn.BatchNorm1d(1)]
    things += [torch.zeros(1), torch, torch.nn, torch.utils, fx.Graph(), fx.symbolic_trace(nn.Identity()), fx.Tracer()]
    things += [torch_prune.L1Unstructured(1), torch.ops.aten.add.Tensor, torch.autograd.Function, torch.autograd]
    names = {name for thing in things for name in dir(thing)}
    return {name for name in names if name.startswith("_") and not name.startswith("__")} | {"_getframe", "_in_spec"}


def private_uses(tree: ast.Module, names: set[str]) -> Iterator[tuple[int, str]]:
    """Attributes and imports of private names; not the methods that a subclass of a module is meant to override."""
    for node in ast.walk(tree):
        if isinstance(node, ast.ImportFrom) and (node.module or "").startswith("torch") and not node.level:
            private = [part for part in (node.module or "").split(".") if part.startswith("_")]
            private += [alias.name for alias in node.names if alias.name.startswith("_")]
            yield from ((node.lineno, name) for name in private)
        elif isinstance(node, ast.Import):
            yield from (
                (node.lineno, alias.name)
                for alias in node.names
                if alias.name.startswith("torch") and "._" in alias.name
            )
        elif isinstance(node, ast.Attribute) and node.attr in names:
            by_super = isinstance(node.value, ast.Call) and getattr(node.value.func, "id", "") == "super"
            if not by_super:
                yield node.lineno, node.attr


def own_names(tree: ast.Module) -> Iterator[str]:
    """Private names that are ours: functions, methods, and attributes that a class of ours gives to itself."""
    for node in ast.walk(tree):
        if isinstance(node, ast.FunctionDef):
            yield node.name
        elif isinstance(node, ast.Attribute) and isinstance(node.ctx, ast.Store) and ast.unparse(node.value) == "self":
            yield node.attr


def test_private_names_of_torch_are_used_in_one_module() -> None:
    code, names = Code(ROOT), torchs_private_names()
    assert {"_parameters", "_version", "_C", "_schema", "_flat_weights"} <= names
    own = {name for tree in code.trees.values() for name in own_names(tree)}
    uses = {name: list(private_uses(tree, names - own)) for name, tree in code.trees.items()}
    elsewhere = [f"{name}:{line} {attribute}" for name, all_of in uses.items() for line, attribute in all_of
                 if name != PRIVATE_HOME]  # fmt: skip
    assert elsewhere == []
    assert 0 < len(uses[PRIVATE_HOME]) <= MOST_PRIVATE
    internals = {"_sequence_nr", "_get_sequence_nr", "_current_autograd_node", "_functorch", "_dynamo"}
    assert not internals & {attribute for _, attribute in uses[PRIVATE_HOME]}
