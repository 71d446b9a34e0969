"""What modules note beside their tensors in a checkpoint, and what they hide from it."""

import pytest
import torch
from torch import nn

import bensemble
from bensemble.errors import CheckpointError
from convert import bayesify

pytest.importorskip("safetensors")


class Versioned(nn.Linear):
    """Loads only what says that it is of version 3."""

    _version = 3

    def _load_from_state_dict(self, state_dict, prefix, local_metadata, *args):
        if local_metadata.get("version") != 3:
            raise RuntimeError(f"version {local_metadata.get('version')} of {prefix}")
        super()._load_from_state_dict(state_dict, prefix, local_metadata, *args)


@pytest.mark.parametrize(
    "make",
    [
        lambda: nn.Sequential(nn.utils.spectral_norm(nn.Linear(4, 4)), nn.Linear(4, 2)),
        lambda: nn.Sequential(nn.utils.parametrizations.spectral_norm(nn.Linear(4, 4)), nn.Linear(4, 2)),
        lambda: nn.Sequential(Versioned(4, 4), nn.BatchNorm1d(4)),
        lambda: nn.Sequential(nn.Linear(4, 4), nn.utils.spectral_norm(nn.Conv1d(4, 4, 1))),
    ],
)
def test_modules_load_by_the_version_that_they_were_saved_with(make, tmp_path):
    bnn = bayesify(make().eval())
    bensemble.save(bnn, tmp_path / "a.safetensors")
    loaded = bensemble.load(tmp_path / "a.safetensors", make().eval())
    assert all(torch.equal(tensor, loaded.state_dict()[name]) for name, tensor in bnn.state_dict().items())


def test_a_note_of_another_version_reaches_the_module(tmp_path, monkeypatch):
    bensemble.save(bayesify(nn.Sequential(Versioned(4, 4))), tmp_path / "a.safetensors")
    monkeypatch.setattr(Versioned, "_version", 4)
    bensemble.load(tmp_path / "a.safetensors", nn.Sequential(Versioned(4, 4)))


class Hiding(nn.Module):
    def __init__(self, hides):
        super().__init__()
        self.backbone, self.norm, self.head = nn.Linear(4, 8), nn.BatchNorm1d(8), nn.Linear(8, 2)
        self.hides = hides

    def state_dict(self, *args, **kwargs):
        full = super().state_dict(*args, **kwargs)
        return type(full)((name, tensor) for name, tensor in full.items() if self.hides not in name)


@pytest.mark.parametrize(
    ("hides", "named"),
    [("backbone", "'backbone.w_mu' and 5 more"), ("w_rho", "'backbone.w_rho' and 1 more"),
     ("running_mean", "'norm.running_mean'"), ("norm.weight", "'norm.weight'")],
)  # fmt: skip
def test_a_state_dict_that_hides_a_part_is_refused(hides, named, tmp_path):
    with pytest.raises(CheckpointError, match=f"of Hiding must hold every tensor, got none of {named};"):
        bensemble.save(bayesify(Hiding(hides)), tmp_path / "a.safetensors")
    assert not any(tmp_path.iterdir())


class Renaming(nn.Linear):
    """Its state dict has names of its own, which only its own loading takes back."""

    def state_dict(self, *args, **kwargs):
        full = super().state_dict(*args, **kwargs)
        return type(full)((f"net.{name}", tensor) for name, tensor in full.items())


def test_a_state_dict_with_other_names_is_refused(tmp_path):
    with pytest.raises(
        CheckpointError, match=r"of Renaming must hold every tensor, got none of 'weight_mu' and 3 more;"
    ):
        bensemble.save(bayesify(Renaming(4, 2)), tmp_path / "a.safetensors")
