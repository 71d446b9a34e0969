"""Files that are no weights, or of another model: what is said, and that nothing runs or changes."""

from __future__ import annotations

import os
import pickle
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from bensemble.errors import CheckpointError
from convert.weights.loading import load_with_notes

from .checkpoints import Net, state


class Runs:
    """Creates a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> Any:
        return os.mkdir, (str(self.path),)


def test_two_networks_in_one_file_are_named(path: Path) -> None:
    both = {f"{who}.{name}": value for who in ("teacher", "student") for name, value in state().items()}
    torch.save(both, path)
    with pytest.raises(CheckpointError, match=r"holds the weights of 2 such models, under 'student\.' and 'teacher\.'"):
        load_with_notes(Net(), path)


def test_another_model_gives_one_error_with_all_names(path: Path) -> None:
    renamed = {name.replace("head", "fc"): value for name, value in state().items()}
    renamed["body.0.weight"] = torch.zeros(5, 9)
    torch.save(renamed, path)
    with pytest.raises(CheckpointError) as caught:
        load_with_notes(Net(), path)
    message = str(caught.value)
    assert "\n" not in message
    assert "2 missing ('head.weight', 'head.bias')" in message
    assert "2 unexpected ('fc.weight', 'fc.bias')" in message
    assert "1 of another shape ('body.0.weight' 5x9 instead of 5x4)" in message
    assert "name the model with the arguments that it was trained with" in message


def test_two_values_for_one_weight_are_refused(path: Path) -> None:
    """A head that was trained without the tie of the model (huggingface/transformers#45127)."""
    model = nn.ModuleDict({"table": nn.Embedding(5, 3), "head": nn.Linear(3, 5, bias=False)})
    model["head"].weight = model["table"].weight
    before, copied = model["table"].weight.clone(), {name: v.clone() for name, v in model.state_dict().items()}
    torch.save(copied, path)
    load_with_notes(model, path)
    torch.save(copied | {"head.weight": torch.zeros(5, 3)}, path)
    with pytest.raises(CheckpointError, match=r"different values for 'table.weight' and 'head.weight', which are one"):
        load_with_notes(model, path)
    assert torch.equal(model["table"].weight, before)


def test_another_width_is_named(path: Path) -> None:
    torch.save(Net(7).state_dict(), path)
    with pytest.raises(CheckpointError, match=r"2 of another shape \('head\.weight' 7x5 instead of 3x5, 'head\.bias'"):
        load_with_notes(Net(), path)


def test_many_names_are_cut_short(path: Path) -> None:
    torch.save({f"layer{i}": torch.zeros(1) for i in range(9)}, path)
    with pytest.raises(CheckpointError, match=r"9 unexpected \('layer0', 'layer1', 'layer2', 'layer3', \.\.\.\)"):
        load_with_notes(Net(), path)


def test_what_the_model_itself_refuses_is_said(path: Path) -> None:
    class Strict(Net):
        def set_extra_state(self, extra: Any) -> None:
            raise RuntimeError("made by version 2\nof the file")

        def get_extra_state(self) -> Any:
            return {}

    torch.save(Strict().state_dict(), path)
    with pytest.raises(CheckpointError, match="is of another model: RuntimeError: made by version 2;"):
        load_with_notes(Strict(), path)


@pytest.mark.parametrize("legacy", [False, True])
@pytest.mark.parametrize("place", ["alone", "inside"])
def test_a_pickle_with_code_is_refused_and_nothing_runs(legacy: bool, place: str, path: Path, tmp_path: Path) -> None:
    trap = Runs(tmp_path / "ran")
    content = trap if place == "alone" else {"state_dict": state(), "note": trap}
    torch.save(content, path, _use_new_zipfile_serialization=not legacy)
    with pytest.raises(CheckpointError, match=r"holds a pickled 'posix\.mkdir'.* nothing was executed.*If you trust"):
        load_with_notes(Net(), path)
    path.write_bytes(pickle.dumps(content))
    with pytest.raises(CheckpointError, match="not a weights file"):
        load_with_notes(Net(), path)
    assert not (tmp_path / "ran").exists()


def test_a_whole_pickled_model_is_refused_with_the_cure(path: Path) -> None:
    torch.save(nn.Linear(2, 2), path)
    with pytest.raises(
        CheckpointError, match=r"torch\.nn\.modules\.linear\.Linear.*torch\.save\(model\.state_dict\(\)"
    ):
        load_with_notes(nn.Linear(2, 2), path)


@pytest.mark.parametrize("share", [0.0, 0.01, 0.5, 0.99])
@pytest.mark.parametrize("form", ["zip", "legacy", "safetensors"])
def test_truncated_files_are_refused(share: float, form: str, tmp_path: Path) -> None:
    path = tmp_path / ("best.safetensors" if form == "safetensors" else "best.pth")
    if form == "safetensors":
        save_file(state(), path)
    else:
        torch.save(state(), path, _use_new_zipfile_serialization=form == "zip")
    whole = path.read_bytes()
    path.write_bytes(whole[: int(share * len(whole))])
    with pytest.raises(CheckpointError, match="is truncated or not a weights file"):
        load_with_notes(Net(), path)


Make = Callable[[Path], Any]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda p: None, r"'.*best\.pth' cannot be read \(No such file or directory\); give the path"),
        (lambda p: p.mkdir(), r"cannot be read \(it is a folder, a device or a pipe\); give the path"),
        (lambda p: p.write_text("not weights at all"), "is truncated or not a weights file"),
        (
            lambda p: torch.save({"epoch": 3, "loss": 0.1}, p),
            "no state dict at 'state_dict' or 'model_state_dict' or 'model', got 'epoch', 'loss'; name .* torch.save",
        ),
        (lambda p: torch.save(torch.zeros(3), p), "holds no state dict at .*, got Tensor"),
        (lambda p: torch.save([1], p), "holds no state dict at .*, got list"),
        (
            lambda p: torch.save({"a": state(), "b": state()}, p),
            "holds no state dict at .*, got 'a', 'b'; name the place with key=",
        ),
    ],
)
def test_files_that_are_no_weights(make: Make, message: str, path: Path) -> None:
    make(path)
    with pytest.raises(CheckpointError, match=message):
        load_with_notes(Net(), path)


@pytest.mark.filterwarnings("ignore:.*torch.jit")
def test_a_torchscript_program_is_refused(path: Path) -> None:
    torch.jit.script(nn.Linear(2, 2)).save(path)
    with pytest.raises(CheckpointError, match="is a TorchScript program, not weights; write"):
        load_with_notes(nn.Linear(2, 2), path)


def test_a_file_that_the_system_refuses_to_open(path: Path) -> None:
    path.write_text("a file, no folder")
    with pytest.raises(CheckpointError, match=r"cannot be read \(Not a directory\); give the path"):
        load_with_notes(Net(), path / "best.pth")


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"model": {}}, "holds no state dict at 'emma', got 'model'; name the place"),
        ({"model": "state", "ema": "state"}, "holds no state dict at 'emma', got 'model', 'ema'; name the place"),
        ("state", "holds no state dict at 'emma', got 'body.0.weight', 'body.0.bias', "),
    ],
)
def test_a_key_that_is_not_there(content: Any, message: str, path: Path) -> None:
    filled = {k: state() if v == "state" else v for k, v in content.items()} if isinstance(content, dict) else state()
    torch.save(filled, path)
    with pytest.raises(CheckpointError, match=message):
        load_with_notes(Net(), path, key="emma")
