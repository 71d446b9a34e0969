"""How a command ends: one readable line on stderr and an exit code.

1: the model, the weights or a path cannot be used. 2: the command line itself cannot be read. 3: the exported file does
not reproduce the model. 130: stopped from the keyboard. In each case no file was written.

torch is imported only after a command has failed, so that a typing mistake is answered at once.
"""

from __future__ import annotations

import sys
import traceback
import warnings
from collections.abc import Sequence
from typing import Any

import typer
from typer.core import TyperGroup

from .printing import say
from .wording import in_options

__all__ = ["OneLineErrors", "WrongUsage"]

#: The root of what the parser raises about a command line. Typer re-exports only this child of it.
ParserError: Any = typer.BadParameter.__bases__[0]


class WrongUsage(typer.BadParameter):
    """Text on the command line that cannot be read; exit code 2."""

    def format_message(self) -> str:
        """The message alone: it names the place itself."""
        return self.message


class OneLineErrors(TyperGroup):
    """A group of commands whose errors are one line each, without a traceback unless ``--debug`` is given."""

    def main(self, args: Sequence[str] | None = None, *rest: Any, **extra: Any) -> Any:
        """Run a command line and leave with its exit code."""
        words = list(sys.argv[1:] if args is None else args)
        command = next((word for word in words if word in self.commands), "")

        def warned(message: Any, *_: Any, **__: Any) -> None:
            say(in_options(" ".join(str(message).split()), command), "Warning: ", "yellow")

        extra["standalone_mode"] = False
        with warnings.catch_warnings():
            warnings.showwarning = warned
            try:
                code = super().main([word for word in words if word != "--debug"], *rest, **extra)
            except typer.Abort:
                code = 130
            except Exception as err:
                if "--debug" in words:
                    traceback.print_exception(err)
                code, line = _code_and_line(err)
                say(in_options(line, command), "Error: ", "bold red")
        if code == 130:
            say("Stopped.")
        sys.exit(code or 0)


def _code_and_line(err: Any) -> tuple[int, str]:
    """The exit code of an exception, and what the user reads."""
    if isinstance(err, ParserError):
        message = " ".join(err.format_message().split())
        path = err.ctx.command_path if err.ctx is not None else "bensemble"
        stop = "" if message.endswith("?") else "."
        return err.exit_code, f"{message.rstrip('.')}{stop} Try '{path} --help'."
    if isinstance(err, ImportError):
        missing = f"the command line needs {err.name}, which is not installed; install bensemble with its cli extra"
        return 1, missing if str(err).startswith("No module") else str(err)
    from bensemble.errors import BensembleError, VerificationError, one_line

    if isinstance(err, BensembleError):
        return 3 if isinstance(err, VerificationError) else 1, str(err)
    return 1, f"{one_line(err)}; run again with --debug to see where."
