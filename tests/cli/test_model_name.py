from __future__ import annotations

import subprocess
import sys

import pytest
from hypothesis import given
from hypothesis import strategies as st

from convert.cli.failures import WrongUsage
from convert.cli.model_name import ModelName, parse_model_name

LITERALS = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: (
        st.lists(inner, max_size=3)
        | st.lists(inner, max_size=3).map(tuple)
        | st.dictionaries(st.text(max_size=4), inner, max_size=3)
    ),
    max_leaves=6,
)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("mymodel:build", ModelName("mymodel:build", "mymodel", "build")),
        ("a.b.c:Net.small", ModelName("a.b.c:Net.small", "a.b.c", "Net.small")),
        ("m:build()", ModelName("m:build()", "m", "build", True)),
        (
            "timm:create_model('vit_small_patch16_224', num_classes=7)",
            ModelName(
                "timm:create_model('vit_small_patch16_224', num_classes=7)",
                *("timm", "create_model", True),
                args=("vit_small_patch16_224",),
                kwargs={"num_classes": 7},
            ),
        ),
        (
            "m:f(-1, +2.5, (1, -2), {'a': [True, None]}, key={1, 2})",
            ModelName(
                "m:f(-1, +2.5, (1, -2), {'a': [True, None]}, key={1, 2})",
                *("m", "f", True),
                args=(-1, 2.5, (1, -2), {"a": [True, None]}),
                kwargs={"key": {1, 2}},
            ),
        ),
        (" m:f('a:b') ", ModelName(" m:f('a:b') ", "m", "f", True, ("a:b",))),
    ],
)
def test_reads_a_call_with_literal_arguments(text: str, expected: ModelName) -> None:
    assert parse_model_name(text) == expected


@given(st.lists(LITERALS, max_size=3), st.dictionaries(st.sampled_from(["a", "b", "width"]), LITERALS, max_size=3))
@pytest.mark.slow
def test_every_literal_comes_back_as_it_was(args: list[object], kwargs: dict[str, object]) -> None:
    written = [repr(value) for value in args] + [f"{name}={value!r}" for name, value in kwargs.items()]
    name = parse_model_name(f"m:build({', '.join(written)})")
    assert list(name.args) == args
    assert name.kwargs == kwargs


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("mymodel.build", r"'mymodel\.build' does not say where the model comes from; write"),
        ("mymodel:", "does not say where the model comes from"),
        (":build", "'' in ':build' is not the name of a module"),
        ("my-model:build", "'my-model' in 'my-model:build' is not the name of a module"),
        (
            "./nets/big.py:build",
            r"'\./nets/big\.py' in .* is not the name of a module; write nets\.big;",
        ),
        ("lenet.py:LeNet5", "'lenet.py' in 'lenet.py:LeNet5' is not the name of a module; write lenet;"),
        ("m:build(", r"'build\(' is not a call in Python's spelling"),
        ("m:build(1, 2", "is not a call in Python's spelling"),
        ("m:" + "(" * 3000, "is not a call in Python's spelling"),
        ("m:build\0", "is not a call in Python's spelling"),
        (
            "m:build(width)",
            "the argument 'width' is not literal, and nothing is evaluated; allowed are text in quotes",
        ),
        ("m:build(n=none)", "the argument 'none' is not literal"),
        ("m:build(int('3'))", r"the argument 'int\('3'\)' is not literal, and nothing is evaluated; allowed are"),
        ("m:build([open('x')])", r"the argument '\[open\('x'\)\]' is not literal"),
        ("m:build(__import__('os').system('x'))", "'__import__.*' is not literal, and nothing is evaluated"),
        ("m:build(f'{1}')", "is not literal"),
        ("m:build(1 + 1)", "the argument '1 \\+ 1' is not literal"),
        ("m:build([i for i in (1, 2)])", "is not literal"),
        ("m:build(lambda: 0)", "is not literal"),
        ("m:build((x := 3))", "is not literal"),
        ("m:build(*[1, 2])", "is not literal"),
        ("m:build(**{'a': 1})", r"gives an argument twice or with \*\*; write each once"),
        ("m:build(a=1, a=2)", "gives an argument twice or with"),
        ("m:build()()", r"'build\(\)' is not a dotted name"),
        ("m:build().net", r"'build\(\)' is not a dotted name"),
        ("m:nets[0]", r"'nets\[0\]' is not a dotted name"),
        ("m:'net'", "is not a dotted name"),
        ("m:1 if 2 else 3", "is not a dotted name"),
    ],
)
def test_refuses_everything_else_and_says_what_is_allowed(text: str, message: str) -> None:
    with pytest.raises(WrongUsage, match=message):
        parse_model_name(text)


def test_is_parsed_without_importing_anything() -> None:
    code = (
        "import sys; from convert.cli.model_name import parse_model_name; parse_model_name('antigravity:fly(1)');"
        "assert not {'antigravity', 'torch', 'onnx'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
