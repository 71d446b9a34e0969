"""Files that release 1.0.0 wrote still load, and give the same numbers. `make.py` wrote them."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch
from torch import nn

import bensemble
from convert import bayesify

from .make import source

HERE = Path(__file__).parent


def from_checkpoint() -> nn.Module:
    return bensemble.load(HERE / "checkpoint.safetensors", source())


def from_state() -> nn.Module:
    bnn = bayesify(source(), prior="ard")
    bnn.load_state_dict(torch.load(HERE / "state.pt", weights_only=True), strict=True)
    return bnn


def from_pickle() -> nn.Module:
    return torch.load(HERE / "model.pt", weights_only=False)


@pytest.mark.parametrize("load", [from_checkpoint, from_state, from_pickle])
def test_a_file_of_the_first_release_loads(load) -> None:
    expected = torch.load(HERE / "expected.pt", weights_only=True)
    bnn, x = load().eval(), expected["x"]
    with torch.no_grad():
        torch.testing.assert_close(bnn(x), expected["mean"])
        with bensemble.sampling(bnn, torch.Generator().manual_seed(1)):
            torch.testing.assert_close(bnn(x), expected["sample"])
        torch.testing.assert_close(bensemble.kl_divergence(bnn), expected["kl"])
    bnn.train()(x).sum().backward()
    assert bnn[7].weight is not None
    assert bnn[7].w_mu is bnn[9].w_mu
