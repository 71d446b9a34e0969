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
import unicodedata
from pathlib import Path
from typing import Any

#: Documents outside of docs/ that become pages of the site.
OUTSIDE = ("CONTRIBUTING.md", "SECURITY.md", "CHANGELOG.md", "benchmarks/README.md")
_LOG = logging.getLogger("mkdocs.hooks.site")
_LINK = re.compile(r"(?<!!)\[([^\[\]]+)\]\(([^()\s#]+)(#[^()\s]*)?\)")
_LOADED = re.compile(
    r"<(?:script|img|iframe|link rel=\"?(?:stylesheet|preconnect))\b[^>]*(?:src|href)=\"?((?:https?:)?//[^\"\s>]+)"
)
_FORMULA = re.compile(r"<p>\.\. math::\s*(.*?)</p>", flags=re.DOTALL)
_INLINE = re.compile(r":math:<code>(.*?)</code>")
_GREEK = ("alpha", "beta", "epsilon", "eta", "mu", "rho", "sigma")
#: Words of LaTeX that are one sign, or none. Others stay as words.
_SIGNS = {
    **{word: unicodedata.lookup(f"GREEK SMALL LETTER {word}") for word in _GREEK},
    "lambda": "λ",
    "tau": "τ",
    "phi": "φ",
    "Phi": "Φ",
    "Sigma": "Σ",
    "sum": "∑",
    "cdot": "·",
    "times": "x",
    "le": "≤",
    "ge": "≥",
    "sim": "~",
    "odot": "⊙",
    "top": "ᵀ",
    "in": "∈",
    "infty": "∞",
    "pi": "π",
    "partial": "∂",
    **dict.fromkeys(("left", "right", "big", "Big", "bigl", "bigr", "Bigl", "Bigr", "quad"), ""),
}
_ROLE = re.compile(r":(?:func|class|meth|mod|attr|data|exc|py:\w+):(?=<code>)")


def on_files(files: Any, config: Any) -> Any:
    """Add the documents outside of docs/."""
    from mkdocs.structure.files import File

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


def on_page_content(html: str, page: Any, **_: Any) -> str:
    """Drop the roles of docstrings, such as ``:func:``, and write their formulas in plain signs.

    The tables of the benchmarks are not searched, and the rest of them comes last: they would fill the results.
    """
    if "benchmarks" in page.file.src_uri:
        html = html.replace("<table>", "<table data-search-exclude>")
        page.meta["search"] = {"boost": 0.2}
    html = _FORMULA.sub(lambda found: f"<pre><code>{_plain(found[1])}</code></pre>", html)
    html = _INLINE.sub(lambda found: f"<code>{_plain(found[1])}</code>", html)
    return _ROLE.sub("", html)


def _plain(formula: str) -> str:
    """A formula of LaTeX as text: no script of another host is needed to read it."""
    formula = re.sub(r"\\(?:mathrm|text|mathcal|mathbb|operatorname)\{([^{}]*)\}", r"\1", formula)
    formula = re.sub(r"\\frac\{([^{}]*)\}\{([^{}]*)\}", r"\1 / \2", formula)
    formula = re.sub(r"\\frac(\w)(\w)", r"\1/\2 ", formula)
    formula = re.sub(r"\\sqrt\{([^{}]*)\}", r"sqrt(\1)", formula)
    formula = re.sub(r"\\([a-zA-Z]+)", lambda word: _SIGNS.get(word[1], word[1]), formula)
    return re.sub(r" {2,}", " ", re.sub(r"\\[,;! ]", " ", formula)).strip()


def on_post_page(output: str, page: Any, **_: Any) -> str:
    """Warn of what a browser would load from another host."""
    for address in _LOADED.findall(output):
        _LOG.warning("%s loads %s", page.file.src_uri, address)
    return output
