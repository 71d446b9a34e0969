"""Trained weights from files as people have them."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import save_file, save_model
from torch import nn

from bensemble.checkpoint import save
from bensemble.errors import CheckpointError
from convert import bayesify, load_weights
from convert.weights.loading import load_with_notes

from .checkpoints import Net, state, trained


class Lightning(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.model = Net()


def assert_loads(content: Any, path: Path, key: str | None = None, model: nn.Module | None = None) -> list[str]:
    """Save, load into a fresh network, and compare with the network of ``trained()``."""
    torch.save(content, path)
    loaded, notes = load_with_notes(model or Net(), path, key)
    expected = trained().state_dict()
    for name, value in loaded.state_dict().items():
        torch.testing.assert_close(value, expected[name.removeprefix("model.")], rtol=0, atol=0)
    return notes


def test_loads_safetensors_and_torch_files(path: Path, tmp_path: Path) -> None:
    assert assert_loads(state(), path) == []
    save_file(state(), tmp_path / "best.safetensors")
    save_file(state(), tmp_path / "named_otherwise.bin")
    for name in ("best.safetensors", "named_otherwise.bin"):
        model, notes = load_with_notes(Net(), tmp_path / name)
        torch.testing.assert_close(model.state_dict(), state(), rtol=0, atol=0)
        assert notes == []
    torch.save(state(), path, _use_new_zipfile_serialization=False)
    torch.testing.assert_close(load_with_notes(Net(), path)[0].state_dict(), state(), rtol=0, atol=0)


@pytest.mark.parametrize("key", ["state_dict", "model", "model_state_dict"])
def test_finds_the_usual_keys(key: str, path: Path) -> None:
    model = trained()
    optimizer = torch.optim.Adam(model.parameters())
    sum(parameter.sum() for parameter in model.parameters()).backward()
    optimizer.step()  # fills its state with tensors by name, which are no weights
    content = {"epoch": 3, "optimizer": optimizer.state_dict(), key: state(), "args": argparse.Namespace(lr=0.1)}
    assert assert_loads(content, path) == [f"took '{key}'"]


def test_takes_what_key_says(path: Path) -> None:
    other = trained(2).state_dict()
    notes = assert_loads({"ema": other, "model": state()}, path)
    assert notes == ["took 'model'"]
    assert assert_loads({"ema": state(), "model": other}, path, key="ema") == []
    assert assert_loads({"a": {"b": state(), "c": other}}, path, key="a.b") == []


@pytest.mark.parametrize("prefix", ["model.", "module.", "_orig_mod.", "module._orig_mod.", "_orig_mod.module.model."])
def test_takes_the_prefix_of_wrappers_away_and_says_so(prefix: str, path: Path) -> None:
    wrapped = {f"{prefix}{name}": value for name, value in state().items()}
    assert assert_loads(wrapped, path) == [f"removed the prefix '{prefix}' from every name"]
    in_checkpoint = assert_loads({"state_dict": wrapped}, path)
    assert in_checkpoint == ["took 'state_dict'", f"removed the prefix '{prefix}' from every name"]


@pytest.mark.parametrize("wrapper", ["_orig_mod", "module", "_checkpoint_wrapped_module"])
def test_takes_the_wrappers_of_parts_out_of_names(wrapper: str, path: Path) -> None:
    """As they come from a network of which one part was compiled, or spread over devices (pytorch/pytorch#3805)."""
    named = {name.replace("body.", f"body.{wrapper}."): value for name, value in state().items()}
    note = f"removed the wrappers of parts from names such as 'body.{wrapper}.0.weight'"
    assert assert_loads(named, path) == [note]
    prefixed = {f"module.{name}": value for name, value in named.items()}
    assert assert_loads(prefixed, path)[1:] == ["removed the prefix 'module.' from every name"]
    own = nn.Sequential()
    own.add_module(wrapper, nn.Sequential(nn.Linear(2, 2)))
    held = {f"body.{name}": value for name, value in own.state_dict().items()}
    torch.save(held, path)
    loaded, notes = load_with_notes(nn.ModuleDict({"body": own}), path)
    assert (notes, loaded.state_dict().keys()) == ([], held.keys())


def test_keeps_a_prefix_that_the_model_has_itself(path: Path) -> None:
    own = {f"model.{name}": value for name, value in state().items()}
    assert assert_loads(own, path, model=Lightning()) == []
    wrapped = {f"module.{name}": value for name, value in own.items()}
    assert assert_loads(wrapped, path, model=Lightning()) == ["removed the prefix 'module.' from every name"]


def test_loads_what_averaged_model_saves(path: Path) -> None:
    averaged = torch.optim.swa_utils.AveragedModel(trained()).state_dict()
    notes = ["removed the prefix 'module.' from every name", "left out 1 other tensors, such as 'n_averaged'"]
    assert assert_loads(averaged, path) == notes


@pytest.mark.parametrize("name", ["net", "backbone", "model.net"])
def test_takes_the_network_out_of_a_module_that_holds_more(name: str, path: Path) -> None:
    """As Lightning saves it, with the weights of the loss and the counts of a metric."""
    held = {f"{name}.{own}": value for own, value in state().items()}
    more = {"criterion.weight": torch.ones(3), "accuracy.tp": torch.zeros(3), **held}
    assert assert_loads({"state_dict": more, "epoch": 3}, path)[1:] == [
        f"removed the prefix '{name}.' from every name",
        "left out 2 other tensors, such as 'criterion.weight'",
    ]


def test_takes_a_bayesian_network_out_of_a_module(path: Path) -> None:
    bnn = bayesify(trained())
    torch.save({"state_dict": {f"net.{name}": value for name, value in bnn.state_dict().items()}}, path)
    model, notes = load_with_notes(Net(), path)
    assert "removed the prefix 'net.' from every name" in notes
    torch.testing.assert_close(model.head.w_rho, bnn.head.w_rho, rtol=0, atol=0)


def test_a_tensor_that_is_stored_once_for_two_names(tmp_path: Path) -> None:
    def tied() -> nn.Module:
        model = nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3, bias=False))
        model[1].weight = model[0].weight
        return model

    source = tied()
    save_model(source, str(tmp_path / "tied.safetensors"))
    loaded, _ = load_with_notes(tied(), tmp_path / "tied.safetensors")
    torch.testing.assert_close(loaded.state_dict(), source.state_dict(), rtol=0, atol=0)
    with pytest.raises(CheckpointError, match=r"1 missing \('1\.weight'\)"):
        load_with_notes(nn.Sequential(nn.Linear(3, 3), nn.Linear(3, 3, bias=False)), tmp_path / "tied.safetensors")


def test_a_checkpoint_of_bensemble_makes_the_model_bayesian(tmp_path: Path) -> None:
    bnn = bayesify(trained(), exclude="head")
    save(bnn, tmp_path / "bnn.safetensors")
    loaded, notes = load_with_notes(Net(), tmp_path / "bnn.safetensors")
    torch.testing.assert_close(loaded.state_dict(), bnn.state_dict(), rtol=0, atol=0)
    assert notes == ["made the model Bayesian as the header of the checkpoint says"]
    with pytest.raises(CheckpointError, match="does not fit"):
        load_with_notes(nn.Linear(3, 3), tmp_path / "bnn.safetensors")


def test_a_bayesian_state_dict_makes_the_model_bayesian(path: Path) -> None:
    bnn = bayesify(trained(), include="head", prior="pretrained", init_sigma=0.02)
    bnn.head.apply_pruning(10.0)
    torch.save({f"module.{name}": value for name, value in bnn.state_dict().items()}, path)
    loaded, notes = load_with_notes(Net(), path)
    assert type(loaded.head).__name__ == "BayesianLinear"
    assert type(loaded.body[0]) is nn.Linear
    torch.testing.assert_close(loaded.head.w_rho, bnn.head.w_rho, rtol=0, atol=0)
    torch.testing.assert_close(loaded.head.w_mu, bnn.head.w_mu, rtol=0, atol=0)
    torch.testing.assert_close(loaded.head.w_mask, bnn.head.w_mask, rtol=0, atol=0)
    assert 0 < int(bnn.head.w_mask.sum()) < bnn.head.w_mask.numel()
    assert notes == [
        "removed the prefix 'module.' from every name",
        "made 2 parameters of the model Bayesian, as they are in the file",
    ]


def test_a_failed_call_leaves_the_model_as_it_was(path: Path) -> None:
    bnn, net = bayesify(trained(), include="head"), Net()
    before = {name: value.clone() for name, value in net.state_dict().items()}
    wrong = {**bnn.state_dict(), "body.0.weight": torch.zeros(5, 3)}
    torch.save(wrong, path)
    with pytest.raises(CheckpointError, match="1 of another shape"):
        load_weights(net, path)
    torch.save({**trained().state_dict(), "head.bias": torch.full((3,), torch.nan)}, path)
    with pytest.raises(CheckpointError, match=r"'head\.bias' in .* is"):
        load_weights(net, path)
    assert type(net.head) is nn.Linear
    assert net.state_dict().keys() == before.keys()
    assert all(torch.equal(value, before[name]) for name, value in net.state_dict().items())


def test_what_was_chosen_is_logged(path: Path, caplog: pytest.LogCaptureFixture) -> None:
    torch.save({"state_dict": {f"net.{name}": value for name, value in state().items()}, "epoch": 9}, path)
    net = Net()
    with caplog.at_level("INFO", "bensemble.load_weights"):
        assert load_weights(net, path) is net
    assert [record.message for record in caplog.records] == [
        f"'{path}': took 'state_dict'",
        f"'{path}': removed the prefix 'net.' from every name",
    ]
    torch.testing.assert_close(net.state_dict(), state(), rtol=0, atol=0)
