"""The gallery shows the examples as they are: its pages, index, figures and notebooks; `make gallery` writes them."""

import importlib.util
import json

import pytest

from .pages import ROOT, Page

spec = importlib.util.spec_from_file_location("site_gallery", ROOT / "docs/site_gallery.py")
gallery = importlib.util.module_from_spec(spec)
spec.loader.exec_module(gallery)
NOTEBOOKS = sorted(gallery.GALLERY.glob("*.ipynb"))
#: Examples that are not pages: a service does not end, and a network of the package index is not installed by all.
APART = {"serve", "pretrained_digits"}


def test_every_example_is_in_the_gallery():
    assert {path.stem for path in ROOT.glob("examples/*.py")} == gallery.EXAMPLES.keys() | APART
    assert {path.stem for path in gallery.GALLERY.glob("*.md")} == gallery.EXAMPLES.keys() | {"index"}
    assert len(gallery.EXAMPLES) >= 12


@pytest.mark.parametrize("name", gallery.EXAMPLES)
def test_a_page_shows_the_code_of_today(name):
    page = Page(gallery.GALLERY / f"{name}.md")
    assert [block.text for block in page.blocks if block.info == "py"] == [gallery.source(name)], "run `make gallery`"
    assert page.path.read_text().startswith(f"# {gallery.EXAMPLES[name][0]}\n\n{gallery.purpose(name)}\n")
    assert "savefig" not in gallery.source(name) or gallery.figure(name)


def test_the_index_is_that_of_today():
    assert (gallery.GALLERY / "index.md").read_text() == gallery.index(), "run `make gallery`"


def test_a_notebook_is_its_script():
    assert [path.stem for path in NOTEBOOKS] == sorted(n for n in gallery.EXAMPLES if "# %%" in gallery.source(n))
    assert len(NOTEBOOKS) >= 5
    for path in NOTEBOOKS:
        assert path.read_text() == gallery.notebook(path.stem), "run `make gallery`"
        code = ["".join(c["source"]) for c in json.loads(path.read_text())["cells"] if c["cell_type"] == "code"]
        compile("\n".join(code), path.name, "exec")
        lines = [line for line in gallery.source(path.stem).splitlines() if line and not line.startswith("# %%")]
        assert lines[-1] in code[-1].splitlines() or lines[-1] in code[-2].splitlines()


@pytest.mark.slow
@pytest.mark.documents
@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs(path, tmp_path):
    """Behind `make gallery`, which installs what it needs."""
    nbclient = pytest.importorskip("nbclient")
    nbformat = pytest.importorskip("nbformat")
    if path.stem == "strangers":
        pytest.importorskip("torchvision")
    book = nbformat.read(path, 4)
    nbformat.validate(book)
    nbclient.NotebookClient(book, timeout=300, resources={"metadata": {"path": tmp_path}}).execute()
    assert any(cell.get("outputs") for cell in book.cells)
