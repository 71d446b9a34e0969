"""A calibration knows the posterior that it was made for."""

import copy
import json

import pytest
import torch
from torch import nn

from bensemble import Calibration, calibrate, predict, set_prior
from bensemble.errors import InvalidValueError
from bensemble.fingerprints import posterior_fingerprint
from bensemble.likelihoods import Gaussian
from bensemble.posteriors import named_posteriors
from convert import bayesify, export_onnx
from convert.runtime import UncertaintySession

pytestmark = pytest.mark.filterwarnings("ignore:predict. the posterior is neither")

X, Y = torch.randn(60, 4), torch.randint(0, 3, (60,))


def network():
    return nn.Sequential(nn.Linear(4, 5), nn.BatchNorm1d(5), nn.ReLU(), nn.Linear(5, 3)).eval()


def predicted(model, num_samples=6):
    return predict(model, X, likelihood="categorical", num_samples=num_samples, generator=torch.Generator())


def calibrated(model):
    return calibrate(predicted(model), Y, temperature=1.0)


def wider(bnn):
    for _, posterior in named_posteriors(bnn):
        with torch.no_grad():
            posterior.rho.add_(0.5)


def moved(bnn):
    bnn[3].w_mu.data.mul_(1.01)


def with_other_statistics(bnn):
    bnn[1].running_mean += 0.1


@pytest.mark.filterwarnings("ignore:calibrate:")
def test_another_noise_is_refused(tmp_path):
    bnn = bayesify(nn.Linear(4, 1), init_sigma=0.1)
    held_out = predict(bnn, X, likelihood=Gaussian(1.0), generator=torch.Generator())
    calibration = calibrate(held_out, torch.randn(60, 1), temperature=1.0)
    assert Calibration.from_json(calibration.to_json()) == calibration
    for act in (
        lambda: calibration.apply(predict(bnn, X, likelihood=Gaussian(0.3), generator=torch.Generator())),
        lambda: export_onnx(
            bnn, tmp_path / "a.onnx", X[:1], outputs="uncertainty", likelihood=Gaussian(0.3), calibration=calibration
        ),
    ):
        with pytest.raises(InvalidValueError, match=r"one of Gaussian\(sigma=1.0\) for Gaussian\(sigma=0.3\); call"):
            act()
    calibration.apply(held_out)


@pytest.mark.parametrize("change", [wider, moved, with_other_statistics])
def test_another_posterior_is_refused(change, tmp_path):
    bnn = bayesify(network(), init_sigma=0.1)
    calibration, other = calibrated(bnn), copy.deepcopy(bnn)
    change(other)
    for verb, act in {
        "apply": lambda: calibration.apply(predicted(other)),
        "export_onnx": lambda: export_onnx(
            other, tmp_path / "a.onnx", X[:1], outputs="uncertainty", likelihood="categorical", calibration=calibration
        ),
    }.items():
        with pytest.raises(InvalidValueError, match=f"{verb}: the calibration must be of this posterior, got one of"):
            act()
    assert not any(tmp_path.iterdir())


def test_the_same_posterior_is_known_in_another_place(tmp_path):
    bnn = bayesify(network())
    calibration = Calibration.from_json(calibrated(bnn).to_json())
    loaded = bayesify(network())
    loaded.load_state_dict(bnn.state_dict())
    set_prior(loaded, "normal")
    for same in (bnn, copy.deepcopy(bnn), loaded.train(), nn.DataParallel(bnn)):
        assert calibration.prediction_set(predicted(same)).shape == (60, 3)


def test_other_predictions_of_it_are_warned_of():
    bnn = bayesify(network())
    calibration = calibrated(bnn)
    with pytest.warns(UserWarning, match=r"of predictions with 6 samples \(weights\), got 7 samples \(weights\)"):
        calibration.apply(predicted(bnn, 7))


@pytest.mark.slow
def test_a_file_has_as_many_draws_as_were_calibrated(tmp_path):
    bnn = bayesify(network())
    options = {"outputs": "uncertainty", "likelihood": "categorical"}
    export_onnx(bnn, tmp_path / "a.onnx", X[:1], calibration=calibrated(bnn), **options)
    assert UncertaintySession(tmp_path / "a.onnx").metadata["bensemble.num_samples"] == "6"
    members = [bayesify(network()) for _ in range(3)]
    export_onnx(members, tmp_path / "b.onnx", X[:1], calibration=calibrated(members), **options)
    assert UncertaintySession(tmp_path / "b.onnx").metadata["bensemble.num_samples"] == "18"
    export_onnx(bnn, tmp_path / "c.onnx", X[:1], **options)
    assert UncertaintySession(tmp_path / "c.onnx").metadata["bensemble.num_samples"] == "16"


def test_a_calibration_of_an_earlier_version_is_for_anyone():
    fields = json.loads(calibrated(bayesify(network())).to_json())
    for name in ("fingerprint", "num_samples", "method"):
        del fields[name]
    old = Calibration.from_json(json.dumps(fields | {"version": 1}))
    assert old.fingerprint is old.method is None
    old.apply(predicted(bayesify(network()), 3))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32, torch.bfloat16, torch.int8, torch.bool])
def test_every_bit_counts(dtype):
    model = nn.Module()
    model.register_buffer("small", torch.ones(5, 3).to(dtype))
    model.register_buffer("large", torch.ones(9001).to(dtype)[1:])
    found = {posterior_fingerprint([model])}
    for name in ("small", "large"):
        for place in (0, -1):
            changed = copy.deepcopy(model)
            changed.get_buffer(name).view(-1)[place] = 0
            found.add(posterior_fingerprint([changed]))
    assert len(found) == 5
    assert posterior_fingerprint([model]) == posterior_fingerprint([copy.deepcopy(model)])


def test_a_write_is_seen_and_constants_differ():
    bnn = bayesify(network(), init_sigma=0.1)
    before = posterior_fingerprint([bnn])
    assert before != posterior_fingerprint([bayesify(network(), init_sigma=0.2)])
    wider(bnn)
    assert posterior_fingerprint([bnn]) != before
