"""How a command ends: one readable line on stderr and an exit code.

| code | meaning |
|---|---|
| 0 | done |
| 1 | refused: the model, the weights or a path cannot be used; nothing was written |
| 2 | wrong usage: the command line itself cannot be read |
| 3 | the exported file does not reproduce the model; nothing was written |
| 130 | stopped from the keyboard |

Nothing here imports torch, so that a typing mistake is answered at once.
"""

from __future__ import annotations

import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import Any

import typer
from rich.console import Console
from rich.text import Text
from typer.core import TyperGroup

__all__ = [
    "DONE",
    "REFUSED",
    "STOPPED",
    "UNVERIFIED",
    "WRONG_USAGE",
    "OneLineErrors",
    "WrongUsage",
    "first_line",
    "say",
]

DONE, REFUSED, WRONG_USAGE, UNVERIFIED, STOPPED = 0, 1, 2, 3, 130

#: The root of what the parser raises about a command line. Typer re-exports only this child of it.
ParserError: Any = typer.BadParameter.__bases__[0]


class WrongUsage(ValueError):  # noqa: N818  # it names the fact, and ends with exit code 2
    """Text on the command line that cannot be read."""


class OneLineErrors(TyperGroup):
    """A group of commands whose errors are one line each, without a traceback unless ``--debug`` is given."""

    def main(self, args: Sequence[str] | None = None, *rest: Any, **extra: Any) -> Any:
        """Run a command line and leave with its exit code."""
        words = list(sys.argv[1:] if args is None else args)
        debug = "--debug" in words
        extra["standalone_mode"] = False
        with warnings.catch_warnings():
            warnings.showwarning = _warn_in_one_line
            try:
                code = super().main([word for word in words if word != "--debug"], *rest, **extra)
            except ParserError as err:
                code = _parser_failure(err)
            except typer.Abort:
                code = STOPPED
            except Exception as err:
                if debug:
                    traceback.print_exception(err)
                code = _failure(err)
        if code == STOPPED:
            say("Stopped.", "yellow")
        sys.exit(code or DONE)


def say(text: str, style: str = "", head: str = "") -> None:
    """Write one line to stderr, its head in a colour where the terminal has colours."""
    Console(stderr=True, soft_wrap=True, highlight=False).print(
        Text.assemble((head, style), text if head else (text, style))
    )


def first_line(err: BaseException) -> str:
    """What somebody else's exception says, its type and its first line, for the middle of a sentence."""
    lines = [line.strip() for line in str(err).splitlines() if line.strip()]
    text = f"{type(err).__name__}: {lines[0].rstrip('.')}" if lines else type(err).__name__
    return "".join(c if c.isprintable() else ascii(c)[1:-1] for c in text[:300])


def _parser_failure(err: Any) -> int:
    """The parser's own message in one line, and where to read on."""
    message = " ".join(err.format_message().split())
    path = err.ctx.command_path if err.ctx is not None else "bensemble"
    stop = "" if message.endswith("?") else "."
    say(f"{message.rstrip('.')}{stop} Try '{path} --help'.", "bold red", "Error: ")
    return int(err.exit_code)


def _failure(err: Exception) -> int:
    if isinstance(err, WrongUsage):
        say(str(err), "bold red", "Error: ")
        return WRONG_USAGE
    from bensemble.errors import BensembleError, VerificationError

    if isinstance(err, BensembleError):
        say(str(err), "bold red", "Error: ")
        return UNVERIFIED if isinstance(err, VerificationError) else REFUSED
    if isinstance(err, ImportError):
        say(str(err), "bold red", "Error: ")
        return REFUSED
    say(f"{first_line(err)}; run again with --debug to see where.", "bold red", "Error: ")
    return REFUSED


def _warn_in_one_line(message: Any, *_: Any, **__: Any) -> None:
    text = " ".join(str(message).split())
    say(text, "yellow", "Warning: ")
