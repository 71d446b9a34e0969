"""Every public name of the reference has an example in its docstring, and the example runs."""

import ast
import copy
import doctest
import importlib
import inspect
import re
import shutil
from types import FunctionType, ModuleType

import pytest
import torch

from .pages import ROOT, Page
from .test_site import described

#: Names without an example, and why.
EXEMPT = {
    "bensemble.plots.labelled": "a part of the other plots",
    "bensemble.plots.on_axes": "a part of the other plots",
    "bensemble.priors.PRIOR_NAMES": "a tuple has no docstring",
    "bensemble.priors.check_prior": "takes the name of the function that asks",
    "bensemble.priors.make_prior": "takes the name of the function that asks",
    "bensemble.likelihoods.required": "takes the name of the function that asks",
}
#: Examples that take more than a few seconds.
SLOW = (
    "bensemble.testing.check_layer", "convert.compress", "convert.Compression", "convert.Confirmation",
    "convert.prune_and_repair",
)  # fmt: skip
SETTING = "docs/reference/examples.md"


def resolved(name):
    home, _, last = name.rpartition(".")
    return getattr(importlib.import_module(home), last)


def public():
    """Every name on the pages of the reference with its object; of a module the names that it exports."""
    for name in described():
        found = resolved(name)
        if isinstance(found, ModuleType):
            yield from ((f"{name}.{part}", getattr(found, part)) for part in found.__all__)
        else:
            yield name, found


def methods():
    """The methods of public classes that have an example too."""
    for name, found in PUBLIC.items():
        for part, method in vars(found).items() if inspect.isclass(found) else ():
            if isinstance(method, FunctionType) and ">>>" in (method.__doc__ or ""):
                yield f"{name}.{part}", method


def example(found):
    """The code of the last section of a docstring, or None where that is no example."""
    _, _, code = (found.__doc__ or "").rpartition("Example:\n")
    return code if re.match(r" +>>> ", code) else None


def problem(name, found):
    """What is wrong with the docstring of a public name; None if nothing is."""
    is_error = inspect.isclass(found) and issubclass(found, Exception)  # caught, not called
    if example(found) is None:
        return None if is_error or name in EXEMPT else "the docstring has no section 'Example:' at its end"
    return "an exempt name has an example" if name in EXEMPT else None


class Written(doctest.OutputChecker):
    """Compares an output where the example writes one."""

    def check_output(self, want, got, optionflags):
        return not want or super().check_output(want, got, optionflags)


def failures(code, names, name="example"):
    """Runs the code in these names; what failed, as doctest tells it."""
    told = []
    runner = doctest.DocTestRunner(Written(), verbose=False, optionflags=doctest.ELLIPSIS)
    runner.run(doctest.DocTestParser().get_doctest(inspect.cleandoc(code), names, name, None, 0), out=told.append)
    return "".join(told)


PUBLIC = dict(public())
EXAMPLES = {name: code for name, found in [*PUBLIC.items(), *methods()] if (code := example(found))}


@pytest.fixture(scope="module")
def setting(tmp_path_factory):
    """What the page of the setting makes: its names, and its folder."""
    folder = tmp_path_factory.mktemp("setting")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        torch.manual_seed(0)
        names = {"__name__": "setting"}
        exec(compile(Page(ROOT / SETTING).code, SETTING, "exec"), names)
    return names, folder


@pytest.fixture
def names(setting, tmp_path, monkeypatch):
    """A fresh copy of the names in a fresh copy of the folder."""
    made, folder = setting
    shutil.copytree(folder, tmp_path, dirs_exist_ok=True)
    monkeypatch.chdir(tmp_path)
    shared = {name: found for name, found in made.items() if isinstance(found, ModuleType) or name == "__builtins__"}
    return shared | copy.deepcopy({name: found for name, found in made.items() if name not in shared})


@pytest.mark.parametrize("name", PUBLIC)
def test_a_public_name_has_an_example(name):
    assert problem(name, PUBLIC[name]) is None


@pytest.mark.parametrize(
    "name", [pytest.param(n, marks=[pytest.mark.slow, pytest.mark.documents] if n in SLOW else []) for n in EXAMPLES]
)
def test_an_example_runs(name, names):
    assert not failures(EXAMPLES[name], names, name)


def test_exempt_and_slow_names_exist():
    assert EXEMPT.keys() <= PUBLIC.keys()
    assert set(SLOW) <= EXAMPLES.keys()


def test_no_other_docstring_holds_a_session():
    """What looks like an example is one that runs."""
    trees = [
        ast.parse(path.read_text()) for package in ("bensemble", "convert") for path in (ROOT / package).rglob("*.py")
    ]
    held = (ast.Module, ast.ClassDef, ast.FunctionDef)
    texts = [ast.get_docstring(node) or "" for tree in trees for node in ast.walk(tree) if isinstance(node, held)]
    assert sum(">>>" in text for text in texts) == len(EXAMPLES)


def test_an_example_that_is_missing_raises_or_prints_something_else_is_found():
    def without():
        """Text that names >>> and no more."""

    assert "no section" in problem("bensemble.without", without)
    assert "ZeroDivisionError" in failures(">>> 1 / 0", {})
    assert "Got:" in failures(">>> 1 + 1\n3", {})
    assert not failures(">>> 1 + 1\n2\n>>> print('x y')\nx ...", {})
