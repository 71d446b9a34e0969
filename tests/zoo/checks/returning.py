"""Copies, files, and the way back."""

from __future__ import annotations

import copy
import io
import pickle

import torch

import convert
from bensemble import named_posteriors

from ..fingerprint import Fingerprint
from ..forward import first_difference, run
from ..subject import Subject


def deepcopy_and_pickle_agree(subject: Subject) -> None:
    """A deepcopy computes the same with storage of its own; where the source pickles, so does the Bayesian model."""
    other = copy.deepcopy(subject.bnn)
    difference = first_difference(subject.outputs, run(other, subject.example.inputs))
    assert difference is None, f"deepcopy: {difference}"
    shared = {p.data_ptr() for p in other.parameters() if p.numel()} & {
        p.data_ptr() for p in subject.bnn.parameters() if p.numel()
    }
    assert not shared, "deepcopy shares storage"
    assert set(dict(named_posteriors(other))) == set(subject.posteriors), "deepcopy has other posteriors"
    del other
    if subject.result.facts["parameters"] > 30e6:
        return
    try:
        pickle.dumps(subject.source)
    except Exception as err:
        subject.result.facts["not_picklable"] = str(err)[:200]
        return
    stream = io.BytesIO()
    torch.save(subject.bnn, stream)
    stream.seek(0)
    other = torch.load(stream, weights_only=False)
    difference = first_difference(subject.outputs, run(other, subject.example.inputs))
    assert difference is None, f"torch.load: {difference}"


def checkpoints_load(subject: Subject) -> None:
    """The source's state dict and the Bayesian one load strictly into a Bayesian model with other weights."""
    stranger = copy.deepcopy(subject.source)
    with torch.no_grad():
        for parameter in stranger.parameters():
            parameter.mul_(0.5)
    stranger = convert.bayesify(stranger, inplace=True)
    rho = {name: p.rho.detach().clone() for name, p in named_posteriors(stranger)}
    stranger.load_state_dict(subject.source.state_dict(), strict=True)
    difference = first_difference(subject.outputs, run(stranger, subject.example.inputs))
    assert difference is None, f"original checkpoint: {difference}"
    for name, posterior in named_posteriors(stranger):
        assert torch.equal(posterior.rho, rho[name]), f"the original checkpoint changed rho of {name}"
        posterior.mu.data.mul_(0.7)
    stranger.load_state_dict(subject.bnn.state_dict(), strict=True)
    difference = first_difference(subject.outputs, run(stranger, subject.example.inputs))
    assert difference is None, f"state dict: {difference}"
    loaded = dict(named_posteriors(stranger))
    for name, posterior in subject.posteriors.items():
        assert torch.equal(posterior.rho, loaded[name].rho), f"the state dict lost rho of {name}"
    assert list(stranger.state_dict()) == list(subject.bnn.state_dict())


def way_back_is_exact(subject: Subject) -> None:
    """``to_deterministic`` gives the source again: output, keys, values, types, ties, flags."""
    back = convert.to_deterministic(subject.bnn)
    difference = first_difference(subject.outputs, run(back, subject.example.inputs))
    assert difference is None, difference
    Fingerprint(subject.source).compare(back, "way back", identity=False)
    assert first_difference(subject.outputs, run(subject.bnn, subject.example.inputs)) is None, "it changed its input"


def source_is_untouched(subject: Subject, before: Fingerprint) -> None:
    """Nothing of the source has changed since before the conversion."""
    before.compare(subject.source, "source", identity=True)
    difference = first_difference(subject.outputs, run(subject.source, subject.example.inputs))
    assert difference is None, difference
