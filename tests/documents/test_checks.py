"""The checks of documents find the fault that each of them is there for."""

import pytest

from .checks import broken_commands, broken_links, missing_paths, not_printed
from .pages import Page


@pytest.fixture
def page(tmp_path):
    """A function that makes a page of a text, beside a second page, a Makefile and a script."""
    (tmp_path / "docs").mkdir()
    (tmp_path / "docs" / "other.md").write_text(
        "# A `plan`, and more!\n\n## Twice\n\n## Twice\n\n```\n# No heading\n```\n"
    )
    (tmp_path / "Makefile").write_text(".PHONY: test\n\ntest: .ready\n\tpytest\n")
    (tmp_path / "examples").mkdir()
    (tmp_path / "examples" / "net.py").write_text('parser.add_argument("--steps", type=int)\n')

    def write(text):
        (tmp_path / "page.md").write_text(text)
        return Page(tmp_path / "page.md")

    return write


@pytest.mark.parametrize(
    "text",
    [
        "[a](docs/other.md) [b](docs) ![c](/docs/other.md)",
        "[a](docs/other.md#a-plan-and-more) [b](docs/other.md#twice) [c](docs/other.md#twice-1)",
        "# Own heading\n\n[a](#own-heading) [b][two] <https://example.org>\n\n[two]: https://example.org/x?y=1#z",
        "`[a](code.md)`\n\n```\n[b](code.md)\n```",
    ],
)
def test_good_links_pass(page, tmp_path, text):
    assert broken_links(page(text), tmp_path) == []


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("[a](docs/none.md)", "file does not exist"),
        ("![a](docs/none.png)", "file does not exist"),
        ("| a |\n|---|\n| [a](docs/none.md) |", "file does not exist"),
        ('<img src="docs/none.png">', "file does not exist"),
        ("[a][name]\n\n[name]: docs/none.md", "file does not exist"),
        ("[a][name]", "reference is not defined"),
        ("[a](docs/other.md#plan)", "heading does not exist"),
        ("[a](docs/other.md#twice-2)", "heading does not exist"),
        ("[a](docs/other.md#no-heading)", "heading does not exist"),
        ("[a](examples/net.py#steps)", "heading does not exist"),
        ("[a](#own)", "heading does not exist"),
        ("[a](https:///path)", "no host"),
        ("[a](https://exa$mple.org)", "no host"),
        ("[a](htps://example.org)", "neither a path nor a web address"),
        ("[a](../page.md)", "does not exist|outside"),
    ],
)
def test_a_broken_link_is_found(page, tmp_path, text, problem):
    (found,) = broken_links(page(text), tmp_path)
    assert any(each in found for each in problem.split("|"))


def test_a_link_out_of_the_repository_is_found(page, tmp_path):
    assert "outside of the repository" in broken_links(page("[a](docs/other.md)"), tmp_path / "examples")[0]


@pytest.mark.parametrize(
    "text",
    [
        "`make test` `make` `bensemble` `bensemble plan | export` `bensemble plan m:build -w x.pth --json`",
        "`bensemble --version` `bensemble inspect a.onnx --debug` `python examples/net.py --steps 3`",
        "`--steps 3` `--json`",
        "```\nmake test  # make nothing\npip install --anything\n```",
        "```python\nmake = nothing\n```",
        "`it's`",
    ],
)
def test_good_commands_pass(page, tmp_path, text):
    assert broken_commands(page(text).commands, tmp_path) == []


@pytest.mark.parametrize(
    ("text", "problem"),
    [
        ("`make none`", "no target none"),
        ("```\nmake test none  # comment\n```", "no target none"),
        ("`bensemble none`", "no command none"),
        ("`bensemble plan | none`", "no command none"),
        ("`bensemble plan m:build --none`", "no option --none"),
        ("`bensemble --none`", "no option --none"),
        ("`bensemble plan m:build --output x`", "no option --output"),
        ("`python examples/none.py`", "examples/none.py does not exist"),
        ("```\npython examples/net.py --none\n```", "no option --none"),
        ("`--none FILE`", "no option --none"),
    ],
)
def test_a_broken_command_is_found(page, tmp_path, text, problem):
    (found,) = broken_commands(page(text).commands, tmp_path)
    assert problem in found


def test_a_missing_path_is_found(page, tmp_path):
    assert missing_paths(page("`docs/other.md` `docs/` `elsewhere/none` `docs/ x`"), tmp_path) == []
    assert missing_paths(page("`docs/none.md`"), tmp_path) == ["docs/none.md: this file does not exist"]


def test_code_keeps_its_lines(page):
    other = "```python needs=laplace\nb = 1\n```"
    code = page(f"One\n\n```python\na = 1\n```\n\n{other}\n\n1. Item\n\n   ```python\n   c = a\n   ```\n")
    assert code.code.splitlines()[3] == "a = 1"
    assert code.code.splitlines()[13] == "c = a"
    assert "b" not in code.code
    assert code.blocks[1].needs == ["laplace"]


PRINTED = "It prints\n\n```text\nfound 21% of 0.37\nright: 96.0%\n```\n"


@pytest.mark.parametrize(
    ("output", "missing"),
    [
        ("x\nfound 24% of 0.40\ny\nright: 95.2%\n", []),
        ("found 31% of 0.37\nright: 96.0%\n", ["found 21% of 0.37"]),
        ("found 21% of 0.57\nright: 96.0%\n", ["found 21% of 0.37"]),
        ("lost 21% of 0.37\nright: 96.0%\n", ["found 21% of 0.37"]),
        ("right: 96.0%\nfound 21% of 0.37\n", ["right: 96.0%"]),
    ],
)
def test_what_is_not_printed_is_found(page, output, missing):
    assert not_printed(page(PRINTED), output) == missing
