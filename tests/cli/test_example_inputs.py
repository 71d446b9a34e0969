from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from bensemble.errors import InvalidValueError
from convert.cli.example_inputs import InputText, make_inputs, parse_input
from convert.cli.failures import WrongUsage


class Encoder(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.words = nn.Embedding(50, 4)
        self.segments = nn.Embedding(3, 4)

    def forward(self, input_ids: Tensor, attention_mask: Tensor | None = None) -> Tensor:
        return self.words(input_ids)


def inputs(*texts: str, model: nn.Module | None = None, seed: int = 0):
    return make_inputs([parse_input(text) for text in texts], model or nn.Linear(3, 2), seed)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("1x3x224x224", InputText(None, (1, 3, 224, 224))),
        ("8", InputText(None, (8,))),
        ("2x3:bfloat16", InputText(None, (2, 3), "bfloat16")),
        ("input_ids=2x128:int64", InputText("input_ids", (2, 128), "int64")),
        ("data/batch.npz", InputText(file=Path("data/batch.npz"))),
    ],
)
def test_reads_the_three_forms(text: str, expected: InputText) -> None:
    assert parse_input(text) == expected


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("1x3x", "'1x3x' is not a shape of positive sizes"),
        ("1,3", "'1,3' is not a shape of positive sizes; write 1x3x224x224, input_ids=2x128:int64 or batch"),
        ("0x3", "'0x3' is not a shape of positive sizes"),
        ("-1x3", "is not a shape"),
        ("", "'' is not a shape"),
        ("x=", "'x=' is not a shape"),
        ("x=1=2", "'x=1=2' is not a shape"),
        ("=1x2", "'=1x2' is not a shape"),
        ("my-x=1x2", "'my-x=1x2' is not a shape"),
        ("1x2:float", "'1x2:float' is not a shape of positive sizes; .*; dtypes are float32"),
        ("1x2:", "'1x2:' is not a shape"),
    ],
)
def test_refuses_other_texts(text: str, message: str) -> None:
    with pytest.raises(WrongUsage, match=message):
        parse_input(text)


def test_one_tensor_several_tensors_named_tensors() -> None:
    assert inputs("2x3").shape == (2, 3)
    first, second = inputs("2x3", "2x4:float64", model=nn.Bilinear(3, 4, 2))
    assert (first.shape, first.dtype, second.shape, second.dtype) == ((2, 3), torch.float32, (2, 4), torch.float64)
    named = inputs("input_ids=2x5:int64", "attention_mask=2x5:int64", model=Encoder())
    assert {name: tuple(value.shape) for name, value in named.items()} == {
        "input_ids": (2, 5),
        "attention_mask": (2, 5),
    }
    assert make_inputs([], nn.Linear(3, 2)) is None


def test_integers_fit_the_smallest_embedding_and_masks_are_ones() -> None:
    named = inputs("input_ids=40x50:int64", "attention_mask=2x5:int32", model=Encoder())
    assert set(named["input_ids"].unique().tolist()) == {0, 1, 2}
    torch.testing.assert_close(named["attention_mask"], torch.ones(2, 5, dtype=torch.int32))
    assert set(inputs("40x50:int64").unique().tolist()) == {0, 1}
    assert bool(inputs("4:bool").all())


def test_the_seed_decides_and_the_global_random_state_stays() -> None:
    model = nn.Linear(3, 2)
    before = torch.random.get_rng_state()
    first, again, other = inputs("4x3", model=model), inputs("4x3", model=model), inputs("4x3", model=model, seed=1)
    torch.testing.assert_close(torch.random.get_rng_state(), before)
    torch.testing.assert_close(first, again, rtol=0, atol=0)
    assert not torch.equal(first, other)


def test_reads_npz_by_name_or_in_order(tmp_path: Path) -> None:
    ids, values = np.arange(6).reshape(2, 3), np.linspace(0, 1, 6).reshape(2, 3)
    np.savez(tmp_path / "named.npz", input_ids=ids)
    np.savez(tmp_path / "ordered.npz", values)
    named = inputs(str(tmp_path / "named.npz"), "attention_mask=2x3:int64", model=Encoder())
    torch.testing.assert_close(named["input_ids"], torch.from_numpy(ids))
    assert list(named) == ["input_ids", "attention_mask"]
    torch.testing.assert_close(inputs(str(tmp_path / "ordered.npz")), torch.from_numpy(values).float())
    double = inputs(str(tmp_path / "ordered.npz"), model=nn.Linear(3, 2).double())
    torch.testing.assert_close(double, torch.from_numpy(values))


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (None, r"'.*x\.npz' is not a file of numeric arrays \(FileNotFoundError: "),
        (b"nothing of the kind", "is not a file of numeric arrays"),
        ({"x": np.array([object()])}, "is not a file of numeric arrays"),
        ({"x": np.array(["text"])}, "is not a file of numeric arrays"),
    ],
)
def test_refuses_unreadable_npz(content: object, message: str, tmp_path: Path) -> None:
    path = tmp_path / "x.npz"
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, dict):
        np.savez(path, **content)
    with pytest.raises(InvalidValueError, match=message):
        inputs(str(path))


@pytest.mark.parametrize(
    ("texts", "message"),
    [
        (["input_ids=2x3:int64", "2x3"], "some are named and some not"),
        (["input_ids=2x3:int64", "input_ids=2x3:int64"], "a name comes twice; write each once"),
    ],
)
def test_refuses_names_for_some_inputs_only(texts: list[str], message: str) -> None:
    with pytest.raises(WrongUsage, match=message):
        inputs(*texts, model=Encoder())
