"""The site: every public name is in the reference, every page in the navigation, and new pages begin and end alike."""

import importlib
import importlib.util
import re
from types import SimpleNamespace

import pytest

import bensemble
import convert

from .pages import ROOT, Page

DOCS = ROOT / "docs"
PAGES = sorted(page.relative_to(DOCS).as_posix() for page in DOCS.rglob("*.md"))
REFERENCE = [name for name in PAGES if name.startswith("reference/")]
#: Pages in the form of the site. The others are older, and begin and end in their own ways.
FORMED = ["index.md", *(name for name in PAGES if name.startswith(("tasks-", "gallery/"))), *REFERENCE]


def navigation():
    """The pages that mkdocs.yml names in its navigation, in order."""
    settings = (ROOT / "mkdocs.yml").read_text()
    return re.findall(r"^ +- [^:\n]+: (\S+\.md)$", settings.split("\nnav:\n")[1], flags=re.MULTILINE)


def described():
    """The names that blocks of the reference describe, in order."""
    text = "\n".join((DOCS / name).read_text() for name in REFERENCE)
    return re.findall(r"^::: (\S+)$", text, flags=re.MULTILINE)


def public():
    return [f"{package.__name__}.{name}" for package in (bensemble, convert) for name in package.__all__]


@pytest.mark.parametrize("name", public())
def test_a_public_name_is_in_the_reference_once(name):
    assert described().count(name) == 1


@pytest.mark.parametrize("name", described())
def test_what_the_reference_describes_is_public(name):
    home, _, last = name.rpartition(".")
    assert last in importlib.import_module(home).__all__ or name == f"{home}.plots"


@pytest.mark.parametrize("name", PAGES)
def test_a_page_is_in_the_navigation_once(name):
    assert navigation().count(name) == 1


@pytest.mark.parametrize("name", navigation())
def test_what_the_navigation_names_exists(name):
    outside = name.removeprefix("project/")
    assert (DOCS / name if outside == name else ROOT / outside).exists()


@pytest.mark.parametrize("name", FORMED)
def test_a_page_begins_with_its_purpose_and_ends_with_the_way_on(name):
    page = Page(DOCS / name)
    top = [token for token in page.tokens if token.block and token.level == 0]
    assert [top[0].type, top[0].tag, top[2].type] == ["heading_open", "h1", "paragraph_open"]
    *_, last = page.path.read_text().split("\n## ")
    assert last.startswith("Where to go next\n")
    assert re.search(r"\]\([^)]*\.md", last)


def test_the_environment_of_the_site_is_that_of_its_extra():
    (extra,) = re.findall(r"^docs = \[(.*)\]$", (ROOT / "pyproject.toml").read_text(), flags=re.MULTILINE)
    names = re.findall(r'"([\w-]+)', extra)
    (command,) = re.findall(r"\$\(DOCS\)/bin/pip install .*", (ROOT / "Makefile").read_text())
    assert command.split("constraints.txt ")[1].split() == names
    pins = re.findall(r"^([\w-]+)==", (ROOT / "constraints.txt").read_text(), flags=re.MULTILINE)
    assert set(names) <= set(pins)


def test_the_site_asks_no_other_host():
    settings = (ROOT / "mkdocs.yml").read_text()
    assert "font: false" in settings
    assert "//" not in re.sub(r"#.*", "", settings)


@pytest.fixture(scope="module")
def hooks():
    spec = importlib.util.spec_from_file_location("site_hooks", DOCS / "site_hooks.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.mark.parametrize(
    ("source", "text", "expected"),
    [
        ("recipes.md", "[a](uncertainty.md#b) [c](#d) [e](https://example.org)", None),
        ("recipes.md", "![a](images/b.png)", None),
        ("recipes.md", "```python\n[a](../CONTRIBUTING.md)\n```", None),
        ("recipes.md", "[a](../SECURITY.md#b)", "[a](project/SECURITY.md#b)"),
        ("reference/fit.md", "[a](../../CONTRIBUTING.md)", "[a](../project/CONTRIBUTING.md)"),
        ("reference/fit.md", "[a](../recipes.md)", "[a](../recipes.md)"),
        ("recipes.md", "see [a](../examples/unet.py)", "see a"),
        ("project/SECURITY.md", "[a](docs/guarantees.md#b)", "[a](../guarantees.md#b)"),
        ("project/benchmarks/README.md", "[a](../docs/recipes.md)", "[a](../../recipes.md)"),
        ("recipes.md", "```python needs=a,b\nx = 1\n```", "```python\nx = 1\n```"),
        ("recipes.md", "- a\n\n  ```python needs=a\n  x\n  ```", "- a\n\n  ```python\n  x\n  ```"),
    ],
)
def test_links_and_fences_are_turned(hooks, source, text, expected):
    page = SimpleNamespace(file=SimpleNamespace(src_uri=source))
    assert hooks.on_page_markdown(text, page=page) == (text if expected is None else expected)


@pytest.mark.parametrize(
    ("html", "expected"),
    [
        ("see :func:<code>plan</code>", "see <code>plan</code>"),
        (
            r":math:<code>|\mu| / \sigma</code>",
            "<code>|\N{GREEK SMALL LETTER MU}| / \N{GREEK SMALL LETTER SIGMA}</code>",
        ),
        (r"<p>.. math:: \frac{a}{b} \, \mathrm{std}(x)</p>", "<pre><code>a / b std(x)</code></pre>"),
    ],
)
def test_docstrings_are_readable(hooks, html, expected):
    assert hooks.on_page_content(html, page=SimpleNamespace(file=SimpleNamespace(src_uri="a.md"))) == expected


@pytest.mark.parametrize(("source", "searched"), [("benchmarks-speed.md", False), ("choosing.md", True)])
def test_the_tables_of_the_benchmarks_are_not_searched(hooks, source, searched):
    page = SimpleNamespace(file=SimpleNamespace(src_uri=source), meta={})
    assert ("data-search-exclude" in hooks.on_page_content("<table>", page=page)) != searched
    assert page.meta == ({} if searched else {"search": {"boost": 0.2}})


def test_what_another_host_would_send_is_a_warning(hooks, caplog):
    page = SimpleNamespace(file=SimpleNamespace(src_uri="a.md"))
    hooks.on_post_page('<a href="https://example.org">a</a><script src="b.js"></script>', page=page)
    assert not caplog.records
    hooks.on_post_page('<script src="https://example.org/c.js"></script>', page=page)
    assert "a.md loads https://example.org/c.js" in caplog.text
