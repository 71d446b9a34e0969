"""What a waiting user sees: a spinner on stderr, where stderr is a terminal; stdout stays clean for results."""

from __future__ import annotations

import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager, redirect_stdout

from rich.console import Console

__all__ = ["working"]


@contextmanager
def working(text: str) -> Iterator[Callable[[str], None]]:
    """Show what is going on while the block runs.

    Whatever the block prints, a user's own module for example, goes to stderr, so that a result on stdout can be piped.

    Yields:
        A function that changes the text.
    """
    console = Console(stderr=True)
    with redirect_stdout(sys.stderr):
        if not console.is_terminal:
            yield lambda text: None
            return
        with console.status(text) as status:
            yield lambda text: status.update(text)
