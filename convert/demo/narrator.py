"""What the demo says on the console: chapters, sentences, progress bars, a table."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.table import Column, Table

__all__ = ["Narrator"]


class Narrator:
    """Tells the story on a rich console."""

    def __init__(self, console: Console) -> None:
        self.console = console
        self._chapters = 0

    def chapter(self, title: str) -> None:
        """Begin a new part of the story."""
        self._chapters += 1
        self.console.print(f"\n[bold cyan]{self._chapters}. {title}[/]")

    def say(self, text: object) -> None:
        """Say a sentence, or print a report as it prints itself."""
        self.console.print(str(text), markup=False, highlight=False, soft_wrap=True)

    @contextmanager
    def counting(self, label: str) -> Iterator[Callable[[int, int | None], None]]:
        """A progress bar for calls that report (done, total)."""
        columns = TextColumn("  {task.description:<24}"), BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()
        with Progress(*columns, console=self.console) as progress:
            task = progress.add_task(label, total=None)
            yield lambda done, total: progress.update(task, completed=done, total=total)

    def table(self, header: Sequence[str], rows: Iterable[Sequence[str]]) -> None:
        """Print rows side by side; the first column names what is measured."""
        table = Table(header[0], *(Column(name, justify="right") for name in header[1:]), header_style="bold")
        for row in rows:
            table.add_row(*row)
        self.console.print(table)
