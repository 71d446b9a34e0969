"""Every document of the repository: its links lead somewhere, what it names exists, and its Python code runs."""

import ast
import importlib
import re
import sys

import pytest

from .checks import broken_commands, broken_links, docstring_commands, missing_paths, not_printed
from .pages import ROOT, Page, all_pages

PAGES = {str(path.relative_to(ROOT)): Page(path) for path in all_pages()}
#: The changelog names what existed when an entry was written.
PRESENT = [name for name in PAGES if name != "CHANGELOG.md"]
WITH_CODE = [name for name in PRESENT if any(block.is_python for block in PAGES[name].blocks)]
#: Pages whose code takes more than a few seconds.
SLOW = (
    "README.md",
    *(f"docs/tasks-{name}.md" for name in ("classifier", "command-line", "distributed", "smaller", "serving")),
    *(f"docs/{name}.md" for name in ("runtimes", "uncertainty")),
)
SLOWLY = [pytest.mark.slow, pytest.mark.documents]
SCRIPTS = sorted([*ROOT.glob("benchmarks/*.py"), *ROOT.glob("examples/*.py")])


def test_the_documents_are_found():
    assert {"README.md", "CONTRIBUTING.md", "SECURITY.md", "benchmarks/README.md", "docs/recipes.md"} <= PAGES.keys()
    assert "README.md" in WITH_CODE


@pytest.mark.parametrize("name", PAGES)
def test_every_link_leads_somewhere(name):
    assert not broken_links(PAGES[name])


@pytest.mark.parametrize("name", PRESENT)
def test_every_path_and_command_exists(name):
    assert not missing_paths(PAGES[name])
    assert not broken_commands(PAGES[name].commands)


@pytest.mark.parametrize("script", SCRIPTS, ids=lambda path: path.stem)
def test_the_commands_in_a_docstring_exist(script):
    assert not broken_commands(docstring_commands(script))


@pytest.mark.parametrize("name", [pytest.param(n, marks=SLOWLY if n in SLOW else []) for n in WITH_CODE])
@pytest.mark.filterwarnings("ignore:predict. the posterior is neither trained nor fitted")
def test_the_code_of_a_document_runs(name, folder, capsys):
    """All blocks of a page run in order, as one session, in an empty folder, and print what the page says."""
    run(PAGES[name].code, name, folder)
    assert not not_printed(PAGES[name], capsys.readouterr().out)


@pytest.mark.parametrize(
    ("name", "block"),
    [
        pytest.param(n, block, id=f"{n}:{block.line}", marks=SLOWLY if n in SLOW else [])
        for n in WITH_CODE
        for block in PAGES[n].blocks
        if block.needs
    ],
)
@pytest.mark.filterwarnings("ignore")  # other libraries use what torch has deprecated
def test_a_block_with_other_libraries_runs(name, block, folder):
    """A block that imports libraries from outside the test environment runs by itself where they are installed."""
    for module in block.needs:
        pytest.importorskip(module, exc_type=ImportError)
    run(block.text, name, folder)


def test_the_messages_of_the_troubleshooting_page_are_raised_somewhere():
    """Every quoted message, piece by piece between the places that vary, is in one text of the sources."""
    sources = [path.read_text() for package in ("bensemble", "convert") for path in (ROOT / package).rglob("*.py")]
    texts = [literal(node) for source in sources for node in ast.walk(ast.parse(source))]
    quoted = re.findall(r"^\*\*`(.+?)`\*\*", (ROOT / "docs/troubleshooting.md").read_text(), re.MULTILINE | re.DOTALL)
    assert len(quoted) >= 20
    for message in quoted:
        pattern = ".*".join(re.escape(part.strip()) for part in " ".join(message.split()).split("…"))
        assert any(text and re.search(pattern, text) for text in texts), message


def literal(node):
    """The text of a string, with a space for everything that is filled in."""
    parts = node.values if isinstance(node, ast.JoinedStr) else [node]
    texts = [part.value if isinstance(part, ast.Constant) else " " for part in parts]
    return " ".join("".join(text for text in texts if isinstance(text, str)).split())


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty current folder from which modules are imported, and forgotten afterwards."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    before = set(sys.modules)
    yield tmp_path
    for name in set(sys.modules) - before:
        if name.startswith("code_of_"):
            del sys.modules[name]


def run(code, name, folder):
    """Import the code of a page as a module, so that its classes can be pickled and their source can be found."""
    module = "code_of_" + "".join(c if c.isalnum() else "_" for c in name.lower())
    (folder / f"{module}.py").write_text(code)
    importlib.invalidate_caches()
    importlib.import_module(module)
