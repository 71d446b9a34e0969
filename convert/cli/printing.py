"""What a user sees: results on stdout, as text or as JSON; everything else on stderr, so that results can be piped."""

from __future__ import annotations

import json as json_text
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout
from dataclasses import asdict
from typing import TYPE_CHECKING, Any

import typer
from rich.console import Console
from rich.text import Text

if TYPE_CHECKING:
    from ..onnx import OnnxSummary

__all__ = ["say", "show", "show_summary", "working"]


def say(text: str, head: str = "", style: str = "") -> None:
    """Write one line to stderr, its head in a colour where the terminal has colours."""
    Console(stderr=True, soft_wrap=True, highlight=False).print(Text.assemble((head, style), text))


@contextmanager
def working(text: str) -> Iterator[Callable[[str], None]]:
    """Show what is going on while the block runs: a spinner, where stderr is a terminal.

    Whatever the block prints, a user's own module for example, goes to stderr.

    Yields:
        A function that changes the text.
    """
    with redirect_stdout(sys.stderr), Console(stderr=True).status(text) as status:
        yield lambda text: status.update(text)


def show(result: object, facts: Any, json: bool) -> None:
    """Print a result as its own text, or its facts as JSON."""
    if json:
        typer.echo(json_text.dumps(facts, indent=2, default=str))
    else:
        typer.echo("".join(c if c.isprintable() or c == "\n" else ascii(c)[1:-1] for c in str(result)))


def show_summary(summary: OnnxSummary, json: bool) -> None:
    """Print what an ONNX file holds, with its operators; an export report says what running it showed, too."""
    operators = ", ".join(f"{count} {name}" for name, count in sorted(summary.operators.items()))
    facts = {**asdict(summary), "sparsity": summary.sparsity}
    show(f"{summary}\n  operators   {operators}", facts, json)
