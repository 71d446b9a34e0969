"""One HTML page with the whole story; pictures are inside, so that the file can be sent around."""

from __future__ import annotations

import base64
import io
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from html import escape
from importlib.resources import files
from pathlib import Path
from string import Template

from matplotlib.figure import Figure

__all__ = ["chapter", "code", "page", "picture", "table", "text", "written_whole"]


def page(title: str, lead: str, chapters: Iterable[str]) -> str:
    """A complete HTML document; the lead below its title and the chapters are HTML."""
    template = Template(files(__package__).joinpath("page.html").read_text(encoding="utf-8"))
    return template.substitute(title=escape(title), lead=lead, body="\n".join(chapters))


def chapter(title: str, *parts: str) -> str:
    """A section of the page; parts are HTML."""
    return f"<section><h2>{escape(title)}</h2>\n" + "\n".join(parts) + "\n</section>"


def text(paragraph: str) -> str:
    """A paragraph of plain words; what stands between backquotes is code."""
    pieces = escape(paragraph).split("`")
    return "<p>" + "".join(f"<code>{p}</code>" if n % 2 else p for n, p in enumerate(pieces)) + "</p>"


def picture(figure: Figure, caption: str) -> str:
    """A figure as an embedded PNG with a caption, which is its description too."""
    buffer = io.BytesIO()
    figure.savefig(buffer, format="png")
    source, words = base64.b64encode(buffer.getvalue()).decode("ascii"), escape(caption)
    return f'<figure><img alt="{words}" src="data:image/png;base64,{source}"><figcaption>{words}</figcaption></figure>'


def table(header: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    """A table; the first column names what is measured."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = "\n".join(
        f'<tr><th scope="row">{escape(name)}</th>' + "".join(f"<td>{escape(cell)}</td>" for cell in cells) + "</tr>"
        for name, *cells in rows
    )
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>\n{body}\n</tbody></table></div>'


def code(block: str) -> str:
    """Preformatted text, such as a plan."""
    return f"<pre>{escape(block)}</pre>"


@contextmanager
def written_whole(path: Path) -> Iterator[Path]:
    """A path beside the one to write, which takes its place when the block ends; on Ctrl-C nothing stays."""
    beside = path.with_name(f".new-{path.name}")
    try:
        yield beside
        beside.replace(path)
    finally:
        beside.unlink(missing_ok=True)
