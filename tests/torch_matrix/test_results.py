"""pyproject.toml admits what the suite was run with, and nothing older."""

import re

import pytest

from .rows import KNOWN, ROOT, ROWS, read, version

PYPROJECT = (ROOT / "pyproject.toml").read_text()


def pinned(pattern, text=PYPROJECT):
    return re.search(pattern, text, flags=re.MULTILINE)[1]


@pytest.mark.parametrize("row", ROWS, ids=lambda row: row.name)
def test_every_row_passed_but_for_what_is_known(row):
    result = read()[row.name]
    assert result.failed == len(KNOWN.get(row.name, ())), f"run `python -m tests.torch_matrix --row {row.name}`"
    assert result.passed > 1000  # more than a part of the suite


def test_the_bound_of_torch_is_the_oldest_that_passed():
    assert version(pinned(r'dependencies = \["torch>=([\d.]+)"\]')) == min(version(r.torch) for r in read().values())


def test_the_bound_of_python_is_the_oldest_that_passed():
    assert version(pinned(r'requires-python = ">=([\d.]+)"')) == min(version(r.python) for r in read().values())
