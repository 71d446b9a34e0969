"""What a Markdown page holds that can be wrong: links, headings, commands and Python code."""

from __future__ import annotations

import re
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path

from markdown_it import MarkdownIt
from markdown_it.token import Token

__all__ = ["ROOT", "Block", "Page", "all_pages"]

ROOT = Path(__file__).parents[2]
#: Folders that are made by commands of the Makefile.
MADE = ("build", "dist", "demo-output")


def all_pages() -> list[Path]:
    """Every Markdown file of the repository. Hidden folders, such as ``.venv``, are left out."""
    folders = [f for f in ROOT.iterdir() if f.is_dir() and not f.name.startswith(".") and f.name not in MADE]
    return sorted([*ROOT.glob("*.md"), *(page for folder in folders for page in folder.rglob("*.md"))])


@dataclass(frozen=True)
class Block:
    """A fenced block.

    Attributes:
        info: What stands behind the opening fence: ``python``, or ``python needs=laplace,ivon``.
        line: Line of the page on which its text begins, counted from 0.
        text: The text between the fences.
    """

    info: str
    line: int
    text: str

    @property
    def is_python(self) -> bool:
        """Whether the block is labelled as Python."""
        return self.info.split(" ")[0] == "python"

    @property
    def needs(self) -> list[str]:
        """Modules that the block imports and that are not part of the test environment."""
        found = re.search(r"\bneeds=(\S+)", self.info)
        return found[1].split(",") if found else []


@dataclass(frozen=True)
class Page:
    """One Markdown file, parsed as GitHub does."""

    path: Path

    @cached_property
    def tokens(self) -> list[Token]:
        """The tokens of the page, those inside of paragraphs and table cells too."""
        tokens = MarkdownIt("commonmark").enable("table").parse(self.path.read_text())
        return [inner for token in tokens for inner in (token, *(token.children or ()))]

    @property
    def links(self) -> list[str]:
        """Targets of links and images, also of those in raw HTML."""
        targets = [token.attrs.get("href", token.attrs.get("src")) for token in self.tokens]
        html = "\n".join(token.content for token in self.tokens if token.type in ("html_inline", "html_block"))
        return [str(target) for target in targets if target is not None] + re.findall(r'(?:href|src)="([^"]*)"', html)

    @property
    def undefined_references(self) -> list[str]:
        """Links of the form ``[text][name]`` for which no line ``[name]: target`` exists."""
        texts = [token.content for token in self.tokens if token.type == "text"]
        return [found for text in texts for found in re.findall(r"\[[^\[\]]+\]\[[^\[\]]*\]", text)]

    @property
    def anchors(self) -> set[str]:
        """The anchors that GitHub gives to the headings."""
        anchors: dict[str, int] = {}
        for opening, heading in zip(self.tokens, self.tokens[1:], strict=False):
            if opening.type == "heading_open":
                texts = (token.content for token in heading.children or () if token.type in ("text", "code_inline"))
                slug = re.sub(r"[^\w\- ]", "", "".join(texts).strip().lower()).replace(" ", "-")
                anchors[slug] = anchors.get(slug, -1) + 1
        return {f"{slug}-{number}" if number else slug for slug, last in anchors.items() for number in range(last + 1)}

    @property
    def blocks(self) -> list[Block]:
        """The fenced blocks, in order."""
        return [
            Block(token.info.strip(), token.map[0] + 1, token.content)
            for token in self.tokens
            if token.type == "fence" and token.map
        ]

    @property
    def commands(self) -> list[str]:
        """What may be typed into a shell: inline code, and the lines of blocks that are not Python."""
        inline = [token.content for token in self.tokens if token.type == "code_inline"]
        lines = [line for block in self.blocks if not block.info for line in block.text.splitlines()]
        return inline + [line.split(" #")[0].strip() for line in lines]

    @property
    def printed(self) -> list[str]:
        """The lines of blocks labelled as text, which the code of the page prints."""
        return [line for block in self.blocks if block.info == "text" for line in block.text.splitlines()]

    @property
    def code(self) -> str:
        """The Python blocks as one module. Each line keeps its number, so a traceback shows the line of the page."""
        lines = [""] * len(self.path.read_text().splitlines())
        for block in self.blocks:
            if block.is_python and not block.needs:
                code = block.text.splitlines()
                lines[block.line : block.line + len(code)] = code
        return "\n".join(lines) + "\n"
