from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import nn

from bensemble.errors import BensembleError, ConversionError
from convert.cli.model_building import build_model
from convert.cli.model_name import parse_model_name

Write = Callable[[str, str], Path]

NETS = """
import functools
from torch import nn

def build(width=8, *, depth=1):
    return nn.Sequential(*[nn.Linear(4, width) for _ in range(depth)])

class Net(nn.Module):
    @classmethod
    def small(cls):
        return cls()

class Box:
    inner = Net()

net = Net()
partial = functools.partial(build, 3)
number = 3

def needs(width, depth=2): ...
def pair(): return build(), 3
def nothing(): ...
def fails(): raise RuntimeError("no data set at /data.\\nmore lines")
def leaves(): raise SystemExit(4)
def late(): import not_installed_at_all
"""


@pytest.fixture
def nets(write: Write) -> Path:
    return write("nets.py", NETS)


def build(text: str) -> nn.Module:
    return build_model(parse_model_name(text))


def test_builds_by_function_class_method_partial_and_instance(nets: Path) -> None:
    assert build("nets:build")[0].out_features == 8
    deep = build("nets:build(5, depth=3)")
    assert (len(deep), deep[2].out_features) == (3, 5)
    assert type(build("nets:Net")).__name__ == "Net"
    assert type(build("nets:Net.small()")).__name__ == "Net"
    assert build("nets:partial()")[0].out_features == 3
    assert build("nets:net") is sys.modules["nets"].net
    assert build("nets:Box.inner") is sys.modules["nets"].Box.inner
    assert build("torch.nn:Linear(3, 2, bias=False)").weight.shape == (2, 3)
    assert isinstance(build("torch:nn.ReLU"), nn.ReLU)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("not_there_at_all:build", "No module named 'not_there_at_all'; install what is missing, or run bensemble in"),
        ("torch.nnn:Linear(1, 1)", r"No module named 'torch\.nnn'; install what is missing"),
        ("nets:buidl", r"'nets' \(.*nets\.py\) has no 'buidl'; did you mean 'build'\?"),
        ("nets:zzz", r"'nets' \(.*nets\.py\) has no 'zzz'; did you mean another name\?"),
        ("nets:Net.smal", r"'nets\.Net' has no 'smal'; did you mean 'small'"),
        ("nets:needs", r"'nets:needs' raised TypeError: needs\(\) missing 1 required positional argument: 'width'"),
        ("nets:build(wdth=3)", "got an unexpected keyword argument 'wdth'"),
        ("nets:build(1, 2)", "takes from 0 to 1 positional arguments but 2 were given"),
        ("nets:net()", r"'nets:net\(\)' calls a network; write its name without the parentheses"),
        ("nets:number", "'nets:number' must give a torch.nn.Module, got an object of type int; name a network"),
        ("nets:pair", "'nets:pair' must give a torch.nn.Module, got an object of type tuple; name a network"),
        ("nets:nothing", "'nets:nothing' must give a torch.nn.Module, got an object of type NoneType"),
        ("nets:Box()", "got an object of type Box"),
        ("nets:fails()", r"'nets:fails\(\)' raised RuntimeError: no data set at /data \(.*nets\.py, line 23\)\.$"),
        ("nets:leaves", r"'nets:leaves' raised SystemExit: 4"),
        ("nets:late", "raised ModuleNotFoundError: No module named 'not_installed_at_all'"),
        ("torch.nn:Linear(3, -4)", "raised RuntimeError: Trying to create tensor with negative dimension"),
    ],
)
def test_says_what_is_wrong_and_what_to_do(text: str, message: str, nets: Path) -> None:
    with pytest.raises(ConversionError, match=message) as caught:
        build(text)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("source", "message"),
    [
        ("import not_installed_at_all", r"No module named 'not_installed_at_all' \(.*broken\.py, line 1\); install"),
        ("def f(:", r"importing 'broken' raised SyntaxError: invalid syntax \(.*broken\.py, line 1\)"),
        ("x = 1\nraise ValueError('bad file')", r"raised ValueError: bad file \(.*broken\.py, line 2\)"),
        ("raise SystemExit(3)", "importing 'broken' raised SystemExit: 3"),
    ],
)
def test_a_module_that_cannot_be_imported(source: str, message: str, write: Write) -> None:
    write("broken.py", source)
    with pytest.raises(ConversionError, match=message):
        build("broken:build")


def test_an_error_of_ours_inside_the_users_code_stays_what_it_is(write: Write) -> None:
    write("own.py", "import bensemble.errors as e\ndef build(): raise e.ReadOnlyError('of ours')")
    with pytest.raises(BensembleError, match=r"^of ours$"):
        build("own:build")


def test_the_current_folder_is_the_first_on_the_path_as_with_python_m(nets: Path) -> None:
    finders, path = list(sys.meta_path), list(sys.path)
    build("nets:net")
    build("torch.nn:Linear(3, 2)")
    assert sys.path == [str(nets.parent), *path]
    assert sys.meta_path == finders


def test_modules_of_the_folder_find_each_other_and_packages_work(write: Write) -> None:
    write("menagerie/__init__.py", "from .big import build")
    write("menagerie/big.py", "import parts\nbuild = parts.head")
    write("parts.py", "from torch import nn\ndef head(): return nn.Linear(2, 7)")
    write("plain/small.py", "from parts import head as build")
    assert build("menagerie:build").out_features == 7
    assert build("menagerie.big:build()").out_features == 7
    assert build("plain.small:build").out_features == 7


def test_a_folder_without_init_does_not_hide_an_installed_package(
    write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    write("site/installed/__init__.py", "from torch import nn\ndef build(): return nn.Linear(2, 9)")
    monkeypatch.syspath_prepend("site")
    write("installed/notes.txt", "a folder of the same name")
    write("mine.py", "from installed import build")
    assert build("mine:build").out_features == 9
    assert build("installed:build").out_features == 9


def test_leaves_the_random_state_to_the_builder(nets: Path) -> None:
    torch.manual_seed(3)
    expected = nn.Linear(4, 8).weight
    torch.manual_seed(3)
    torch.testing.assert_close(build("nets:build")[0].weight, expected, rtol=0, atol=0)
