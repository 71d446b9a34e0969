"""What ``bayesify`` records about the last layer, and what a checkpoint keeps of it."""

from __future__ import annotations

import copy
import pickle
from typing import Any

import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

import bensemble
from bensemble.checkpoint.header import read_header
from bensemble.errors import CheckpointError
from bensemble.layers import BayesianLinear
from convert import bayesify, last_layer, plan, to_deterministic

from .heads import Network, Tied, flags, x


def bayesian_head() -> tuple[Network, Tensor]:
    network, inputs = Network(lambda m, h: m.fc(h) / 2), x()
    return bayesify(network, include=last_layer(network, inputs), example_inputs=inputs), inputs


def test_bayesify_records_the_last_layer() -> None:
    bnn, inputs = bayesian_head()
    assert flags(bnn) == {"fc": True}
    assert flags(copy.deepcopy(bnn)) == {"fc": True}
    network = Network(lambda m, h: m.fc(h) / 2)
    chosen = plan(network, include="fc", example_inputs=inputs)
    assert chosen.last_layer == "fc"
    assert '"last_layer": "fc"' in chosen.to_json()
    assert flags(bayesify(network, plan=chosen)) == {"fc": True}
    assert "is_last" not in vars(to_deterministic(bnn).fc)
    root = bayesify(nn.Linear(4, 3), example_inputs=inputs)
    assert root.is_last
    assert pickle.loads(pickle.dumps(root)).is_last


def test_what_last_layer_returned_needs_no_proof_again() -> None:
    calls: list[int] = []
    network, inputs = Network(lambda m, h: calls.append(1) or m.fc(h) / 2), x()
    name = last_layer(network, inputs)
    assert name == "fc"
    calls.clear()
    assert flags(bayesify(network, include=name)) == {"fc": True}
    assert plan(network, include=name, trace=False).last_layer == "fc"
    assert not calls
    assert flags(bayesify(network, include=str(name))) == {"fc": False}
    assert flags(bayesify(network, include=[name, "body"])) == {"body": False, "fc": False}
    root = nn.Linear(4, 3)
    assert bayesify(root, include=last_layer(root, x())).is_last
    with pytest.warns(UserWarning, match="softmax follows"):
        name = last_layer(softmaxed := Network(lambda m, h: m.fc(h).softmax(-1)), inputs)
    assert flags(bayesify(softmaxed, include=name)) == {"fc": False}


def test_bayesify_records_no_other_layer() -> None:
    inputs = x()
    assert flags(bayesify(Network(lambda m, h: m.fc(h)), example_inputs=inputs)) == {"body": False, "fc": False}
    assert flags(bayesify(Network(lambda m, h: m.fc(h)), include="body", example_inputs=inputs)) == {"body": False}
    assert flags(bayesify(Network(lambda m, h: m.fc(h).relu()), include="fc", example_inputs=inputs)) == {"fc": False}
    assert flags(bayesify(Network(lambda m, h: m.fc(h)), include="fc")) == {"fc": False}
    tied = bayesify(Tied(), example_inputs=torch.randint(0, 9, (2, 6)))
    assert not any(flags(tied).values())  # the lookup is Bayesian too


def test_it_costs_forwards_only_where_one_layer_is_bayesian() -> None:
    calls: list[int] = []
    network = Network(lambda m, h: calls.append(1) or m.fc(m.more(h)), more=nn.Linear(8, 8))
    plan(network, example_inputs=x())
    plan(network, exclude="body", example_inputs=x())
    assert len(calls) == 2
    plan(network, include="fc", example_inputs=x())
    assert len(calls) == 3 + 3  # the probe, a survey, and two proofs


def test_a_checkpoint_keeps_it(tmp_path: Any) -> None:
    bnn, _ = bayesian_head()
    bensemble.save(bnn, tmp_path / "last.safetensors")
    assert flags(bensemble.load(tmp_path / "last.safetensors", Network(bnn.end))) == {"fc": True}
    bnn.fc.is_last = False
    bensemble.save(bnn, tmp_path / "other.safetensors")
    assert b"is_last" not in (tmp_path / "other.safetensors").read_bytes()  # as in files that know nothing of it
    assert flags(bensemble.load(tmp_path / "other.safetensors", Network(bnn.end))) == {"fc": False}
    fresh, _ = bayesian_head()
    assert flags(bensemble.load(tmp_path / "other.safetensors", fresh)) == {"fc": True}


@pytest.mark.parametrize("wrong", ["[1]", "[true,true]", '"a"', "null"])
def test_a_damaged_flag_is_refused(wrong: str, tmp_path: Any) -> None:
    bnn, _ = bayesian_head()
    bensemble.save(bnn, tmp_path / "last.safetensors")
    with safe_open(tmp_path / "last.safetensors", "pt") as file:
        text = file.metadata()["bensemble"]
    assert read_header("it", text).posteriors[0].is_last == (True,)
    with pytest.raises(CheckpointError, match=r"header of 'it' is damaged \((bad is_last|a flag is neither)"):
        read_header("it", text.replace('"is_last":[true]', f'"is_last":{wrong}'))


def test_a_layer_built_by_hand_says_so_itself() -> None:
    layer = BayesianLinear(4, 3)
    assert not layer.is_last
    layer.is_last = True
    assert copy.deepcopy(layer).is_last
    assert not BayesianLinear.is_last
