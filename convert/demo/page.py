"""The pieces of one HTML page with the whole story; pictures are inside, so that the file can be sent around."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from html import escape
from importlib.resources import files
from string import Template

from .answers import Shown, in_words
from .pictures import embedded

__all__ = ["Cell", "card", "chapter", "details", "figure", "gallery", "page", "side_by_side", "table", "text"]

#: A number with its error, "" where it has none, and whether it is among the best of its row.
Cell = tuple[str, str, bool]


def page(title: str, *parts: str) -> str:
    """A complete document; parts are HTML."""
    template = Template(files(__package__).joinpath("page.html").read_text(encoding="utf-8"))
    return template.substitute(title=escape(title), body="\n".join(parts))


def chapter(title: str, *parts: str) -> str:
    """A section of the page; parts are HTML."""
    return f"<section><h2>{escape(title)}</h2>\n" + "\n".join(parts) + "\n</section>"


def text(*sentences: str, kind: str = "") -> str:
    """A paragraph of plain words, or a list of several; what stands between backquotes is code."""
    marked = []
    for sentence in sentences:
        pieces = escape(sentence).split("`")
        marked.append("".join(f"<code>{p}</code>" if n % 2 else p for n, p in enumerate(pieces)))
    if len(marked) > 1:
        return "<ul>" + "".join(f"<li>{words}</li>" for words in marked) + "</ul>"
    return f'<p class="{kind}">{marked[0]}</p>' if kind else f"<p>{marked[0]}</p>"


def card(shown: Shown, explanation: str) -> str:
    """One image, large, beside what the file says to it."""
    return f'<div class="card">{_image(shown)}<div>{_quote("blockquote", shown)}{text(explanation)}</div></div>'


def gallery(title: str, row: Iterable[Shown]) -> str:
    """Small images in a row, each above what the file says to it."""
    cells = "".join(f"<figure>{_image(shown)}{_quote('figcaption', shown)}</figure>" for shown in row)
    return f'<h3>{escape(title)}</h3><div class="row">{cells}</div>'


def side_by_side(*parts: str) -> str:
    """Parts in a row, one below the other where there is no space."""
    return f'<div class="pair">{"".join(parts)}</div>'


def figure(svg: str, caption: str) -> str:
    """A diagram with a caption."""
    return f"<figure>{svg}<figcaption>{escape(caption)}</figcaption></figure>"


def details(title: str, block: str) -> str:
    """Preformatted text, such as a report, that opens when it is asked for."""
    return f"<details><summary>{escape(title)}</summary><pre>{escape(block)}</pre></details>"


def table(header: Sequence[str], rows: Iterable[tuple[str, Sequence[Cell]]]) -> str:
    """A table; the first column names what is measured."""
    head = "".join(f"<th>{escape(cell)}</th>" for cell in header)
    body = []
    for name, cells in rows:
        numbers = (
            f"<td{' class=best' * best}>{escape(number)}{f' <small>± {escape(error)}</small>' * bool(error)}</td>"
            for number, error, best in cells
        )
        body.append(f'<tr><th scope="row">{escape(name)}</th>{"".join(numbers)}</tr>')
    return f'<div class="wide"><table><thead><tr>{head}</tr></thead><tbody>\n{"".join(body)}\n</tbody></table></div>'


def _image(shown: Shown) -> str:
    what = "a stranger" if shown.truth is None else f"a handwritten {shown.truth}"
    return f'<img alt="{what}" src="{embedded(shown.image)}">'


def _quote(tag: str, shown: Shown) -> str:
    kind = " class=strange" * bool(shown.answer.reject())
    return f"<{tag}{kind}>{escape(in_words(shown.answer, short=tag == 'figcaption'))}</{tag}>"
