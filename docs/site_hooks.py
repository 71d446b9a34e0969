"""What the site needs beyond the pages of docs/, so that the same pages also work on a checkout.

Documents outside of docs/ become pages of the site, under ``project/``. Links to them, and from them into docs/, are
turned. A link to any other file of the repository becomes plain text, because the site does not hold that file. A page
that would load something from another host is a warning, so `mkdocs build --strict` fails.
"""

from __future__ import annotations

import logging
import os
import posixpath
import re
from pathlib import Path
from typing import Any

from mkdocs.structure.files import File

#: Documents outside of docs/ that become pages of the site.
OUTSIDE = ("CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "benchmarks/README.md")
_LOG = logging.getLogger("mkdocs.hooks.site")
_LINK = re.compile(r"(?<!!)\[([^\[\]]+)\]\(([^()\s#]+)(#[^()\s]*)?\)")
_LOADED = re.compile(
    r"<(?:script|img|iframe|link rel=\"?(?:stylesheet|preconnect))\b[^>]*(?:src|href)=\"?((?:https?:)?//[^\"\s>]+)"
)
_ROLE = re.compile(r":(?:func|class|meth|mod|attr|data|exc|py:\w+):(?=<code>)")


def on_files(files: Any, config: Any) -> Any:
    """Add the documents outside of docs/."""
    root = Path(config.config_file_path).parent
    for name in OUTSIDE:
        files.append(File.generated(config, f"project/{name}", abs_src_path=str(root / name)))
    return files


def on_page_markdown(markdown: str, page: Any, **_: Any) -> str:
    """Turn links that leave docs/, and drop what Python-Markdown does not know behind a fence."""
    source = page.file.src_uri
    here = source.removeprefix("project/") if source.startswith("project/") else f"docs/{source}"

    def turned(link: re.Match[str]) -> str:
        text, target, anchor = link[1], link[2], link[3] or ""
        if re.match(r"[a-z]+:", target):
            return link[0]
        path = posixpath.normpath(posixpath.join(posixpath.dirname(here), target))
        if path.startswith("docs/"):
            path = path.removeprefix("docs/")
        elif path in OUTSIDE:
            path = f"project/{path}"
        else:
            return text
        return f"[{text}]({os.path.relpath(path, posixpath.dirname(source) or '.')}{anchor})"

    parts = re.split(r"(^ *```.*?^ *```$)", markdown, flags=re.MULTILINE | re.DOTALL)
    parts[::2] = [_LINK.sub(turned, text) for text in parts[::2]]
    parts[1::2] = [re.sub(r"^( *```\w+) .*$", r"\1", block, count=1, flags=re.MULTILINE) for block in parts[1::2]]
    return "".join(parts)


def on_page_content(html: str, **_: Any) -> str:
    """Drop the roles of docstrings, such as ``:func:``, that Markdown has no meaning for."""
    return _ROLE.sub("", html)


def on_post_page(output: str, page: Any, **_: Any) -> str:
    """Warn of what a browser would load from another host."""
    for address in _LOADED.findall(output):
        _LOG.warning("%s loads %s", page.file.src_uri, address)
    return output
