"""The checks of a page. Each returns its findings, one line for each."""

from __future__ import annotations

import ast
import re
import shlex
from functools import cache
from pathlib import Path
from urllib.parse import unquote, urlsplit

from typer.main import get_command

from convert.cli.app import app

from .pages import MADE, ROOT, Page

__all__ = ["broken_commands", "broken_links", "missing_paths", "not_printed"]

_NUMBER = re.compile(r"\d+(?:\.\d+)?%?")


def broken_links(page: Page, root: Path = ROOT) -> list[str]:
    """Links to files and headings that do not exist, and web addresses that are none. Nothing is fetched."""
    findings = [f"{reference}: this reference is not defined" for reference in page.undefined_references]
    return findings + [f"{link}: {problem}" for link in page.links if (problem := _problem(link, page, root))]


def _problem(link: str, page: Page, root: Path) -> str | None:
    parts = urlsplit(link)
    if parts.scheme in ("http", "https"):
        return None if re.fullmatch(r"[\w-]+(\.[\w-]+)+(:\d+)?", parts.netloc) else "no host"
    if parts.scheme or parts.netloc:
        return "neither a path nor a web address"
    path = unquote(parts.path)
    target = root / path[1:] if path.startswith("/") else page.path.parent / path if path else page.path
    if not target.exists():
        return "this file does not exist"
    if not target.resolve().is_relative_to(root.resolve()):
        return "this file lies outside of the repository"
    if parts.fragment and (target.suffix != ".md" or unquote(parts.fragment) not in Page(target).anchors):
        return "this heading does not exist"
    return None


def missing_paths(page: Page, root: Path = ROOT) -> list[str]:
    """Paths in inline code that begin with a folder of the repository and do not exist."""
    folders = {folder.name for folder in root.iterdir() if folder.is_dir()} - set(MADE)
    named = [token.content for token in page.tokens if token.type == "code_inline"]
    paths = [
        name for name in named if re.fullmatch(r"[\w.\-/]+", name) and "/" in name and name.split("/")[0] in folders
    ]
    return [f"{path}: this file does not exist" for path in paths if not (root / path).exists()]


def broken_commands(commands: list[str], root: Path = ROOT) -> list[str]:
    """Targets of make, commands of bensemble, scripts of this repository, and their options, that do not exist."""
    return [f"{command}: {problem}" for command in commands for problem in _command_problems(command, root)]


def _command_problems(command: str, root: Path) -> list[str]:
    try:
        words = shlex.split(command)
    except ValueError:  # code with an apostrophe, no command
        return []
    match words:
        case ["make", *targets]:
            known = make_targets(root)
            return [f"make has no target {name}" for name in targets if name not in known and "=" not in name]
        case ["bensemble", *_]:
            return [problem for part in command.removeprefix("bensemble").split("|") for problem in _cli_problems(part)]
        case ["python", script, *words] if script.split("/")[0] in ("benchmarks", "examples"):
            if not (root / script).exists():
                return [f"{script} does not exist"]
            known = script_options(root / script)
        case [option, *_] if re.match(r"--\w", option):  # an option by itself: of any command or script
            scripts = [*root.glob("benchmarks/*.py"), *root.glob("examples/*.py")]
            known = set().union(*cli_options().values(), *map(script_options, scripts))
        case _:
            return []
    return _unknown_options(words, known)


def _cli_problems(command: str) -> list[str]:
    words, known = shlex.split(command), cli_options()
    if not words or words[0].startswith("-"):
        return _unknown_options(words, known[""])
    if words[0] not in known:
        return [f"bensemble has no command {words[0]}"]
    return _unknown_options(words[1:], known[words[0]] | known[""])


def _unknown_options(words: list[str], known: set[str]) -> list[str]:
    options = [word.split("=")[0] for word in words if re.match(r"--?[a-zA-Z]", word)]
    return [f"there is no option {option}" for option in options if option not in known]


@cache
def make_targets(root: Path = ROOT) -> set[str]:
    """The targets of the Makefile."""
    return set(re.findall(r"^([a-z][\w-]*):", (root / "Makefile").read_text(), flags=re.MULTILINE))


@cache
def cli_options() -> dict[str, set[str]]:
    """The options of every command of bensemble; those of bensemble itself under the empty name."""
    group = get_command(app)
    commands = {"": group, **group.commands}
    return {
        name: {option for parameter in command.params for option in parameter.opts} | {"--help", "-h"}
        for name, command in commands.items()
    }


@cache
def script_options(script: Path) -> set[str]:
    """The options that a script adds to its parser."""
    calls = [node for node in ast.walk(ast.parse(script.read_text())) if isinstance(node, ast.Call)]
    adding = [call for call in calls if isinstance(call.func, ast.Attribute) and call.func.attr == "add_argument"]
    names = [name.value for call in adding for name in call.args if isinstance(name, ast.Constant)]
    return {name for name in names if name.startswith("-")} | {"--help", "-h"}


def docstring_commands(script: Path) -> list[str]:
    """The commands in the docstring of a script."""
    return re.findall(
        r"python (?:benchmarks|examples)/[^\n`)]*\w", ast.get_docstring(ast.parse(script.read_text())) or ""
    )


def not_printed(page: Page, output: str) -> list[str]:
    """Lines that a page says its code prints, and that it does not print in the order of the page, up to rounding.

    Another processor trains a little differently: numbers may be off by a fifth, and by .1 or 2 %.
    """
    lines, missing = output.splitlines(), []
    for expected in page.printed:
        place = next((i for i, line in enumerate(lines) if _alike(expected, line)), None)
        if place is None:
            missing.append(expected)
        else:
            lines = lines[place + 1 :]
    return missing


def _alike(expected: str, line: str) -> bool:
    if _NUMBER.sub("#", expected) != _NUMBER.sub("#", line):
        return False
    pairs = zip(_NUMBER.findall(expected), _NUMBER.findall(line), strict=True)
    return all(_close(one, other) for one, other in pairs)


def _close(one: str, other: str) -> bool:
    value, found = float(one.rstrip("%")), float(other.rstrip("%"))
    return abs(value - found) <= 0.2 * value + (2.0 if one.endswith("%") else 0.1)
