"""The monitor: its false-alarm rate is kept, drift is seen, and what it refuses."""

import dataclasses
import json
import secrets

import numpy as np
import pytest
import torch
from uncertainty_files import answers, model, reference

import bensemble
from bensemble.likelihoods import Gaussian
from convert.onnx import export_onnx
from convert.runtime import Answer, Monitor, UncertaintySession

pytestmark = pytest.mark.xdist_group("monitor")  # its fixtures are made once


def test_a_monitor_takes_a_path_and_mappings(calibrated, monkeypatch):
    _, path, _ = calibrated
    monkeypatch.setattr(secrets, "token_hex", lambda size: "5e" * size)  # the noise of the classes comes from it
    answer = UncertaintySession(path, providers="CPUExecutionProvider")(np.random.randn(7, 4).astype("float32"))
    monitors = [Monitor(path) for _ in range(4)]
    forms = (answer, [answer], dict(answer), {name: torch.as_tensor(array) for name, array in answer.items()})
    for monitor, form in zip(monitors, forms, strict=True):
        monitor.update(form)
    assert {monitor.verdict() for monitor in monitors} == {monitors[0].verdict()}
    with pytest.raises(TypeError, match="UncertaintySession: file must be a string, a Path, bytes, or a file"):
        UncertaintySession(None)


@pytest.mark.long
def test_false_alarms_stay_within_the_promise_however_often_one_looks():
    """A new calibration set and a new stream each time, a look after every 20 examples, short windows."""
    rng, streams, rate = np.random.default_rng(0), 300, 0.1
    false = 0
    for _ in range(streams):
        monitor = Monitor(reference(rng.gamma(2.0, size=60)), false_alarm_rate=rate, window=100)
        for _ in range(25):
            monitor.update(answers(rng.gamma(2.0, size=20)))
            if monitor.verdict().drifted:
                false += 1
                break
    assert false / streams <= rate + 3 * (rate * (1 - rate) / streams) ** 0.5


def test_a_finite_calibration_set_is_no_drift():
    """A stream a thousand times as long tells the quantiles of 50 examples from the truth, and must not say so."""
    rng, false = np.random.default_rng(0), 0
    for _ in range(40):
        monitor = Monitor(reference(rng.random(50)), false_alarm_rate=0.05, window=10**6)
        monitor.update(answers(rng.random(50_000)))
        false += monitor.verdict().drifted
    assert false <= 2 + 3 * 2**0.5


def test_a_value_that_occurs_often_is_no_drift():
    """A third of the values are exactly 0: no quantile of theirs says how large their share is."""
    rng, false = np.random.default_rng(0), 0
    for _ in range(20):
        draw = lambda n: np.maximum(rng.random(n) - 1 / 3, 0)  # noqa: E731
        monitor = Monitor(reference(draw(2000)), false_alarm_rate=0.05, window=10**6)
        monitor.update(answers(draw(50_000)))
        false += monitor.verdict().drifted
    assert false <= 1 + 3


def test_rounding_is_no_drift():
    """A posterior without noise to speak of: the file gives 0 where Python gave a few units in the last place."""
    rng = np.random.default_rng(0)
    source = reference(rng.random(300))
    source.reference["mutual_information"] = tuple(1e-8 * q for q in source.reference["mutual_information"])
    monitor = Monitor(source)
    live = rng.random(5000)
    monitor.update({"entropy": live, "mutual_information": np.zeros_like(live)})
    assert not monitor.verdict().drifted


@pytest.mark.parametrize("direction", ["more", "less"])
def test_drift_is_seen_within_a_few_dozen_examples(direction):
    rng = np.random.default_rng(0)
    drifted = (lambda: rng.beta(4, 1, 1)) if direction == "more" else (lambda: rng.beta(1, 4, 1))
    for _ in range(10):
        monitor = Monitor(reference(rng.random(1000)))
        monitor.update(answers(rng.random(20)))
        needed = 0
        while not monitor.verdict().drifted:
            monitor.update(answers(drifted()))
            needed += 1
            assert needed < 100
        assert needed > 2


def test_late_drift_is_seen_and_dated():
    rng = np.random.default_rng(0)
    monitor = Monitor(reference(rng.random(1000)), window=500)
    monitor.update(answers(rng.random(5000)))
    assert not monitor.verdict().drifted
    monitor.update(answers(rng.beta(3, 1, 200)))
    verdict = monitor.verdict()
    assert verdict.drifted
    assert verdict.since == 5000
    assert verdict.seen == 5200
    assert verdict.share_high > 0.2 > verdict.expected_high
    assert str(verdict).startswith(f"drift in {verdict.measure} since example 5000, 5200 examples seen: evidence")
    with pytest.raises(dataclasses.FrozenInstanceError):
        verdict.drifted = False


def test_an_empty_monitor_has_no_evidence():
    verdict = Monitor(reference(np.random.default_rng(0).random(100))).verdict()
    assert not verdict.drifted
    assert verdict.seen == verdict.since == 0
    assert verdict.evidence < 0


def test_one_term_of_each_example_counts():
    source = reference(np.random.default_rng(0).random(100))
    monitor = Monitor(source)
    monitor.update(answers(np.random.default_rng(1).random((8, 5, 5))))
    assert monitor.seen == 8


def test_monitors_refuse_what_cannot_be_compared():
    rng = np.random.default_rng(0)
    source = reference(rng.random(100))
    with pytest.raises(ValueError, match="Monitor: false_alarm_rate must be between 0 and 1, got 1"):
        Monitor(source, false_alarm_rate=1)
    with pytest.raises(ValueError, match="Monitor: window must be a whole number of at least 1, got 0"):
        Monitor(source, window=0)
    with pytest.raises(ValueError, match="the reference of entropy and mutual_information must vary, got one value"):
        Monitor(reference(np.zeros(100)))
    for wrong in (None, 7, np.zeros(3)):
        with pytest.raises(
            TypeError, match=r"Monitor: session must be an UncertaintySession or the path of a file, got"
        ):
            Monitor(wrong)
    with pytest.raises(ValueError, match=r"false_alarm_rate must be between 0 and 1, got '0\.1'"):
        Monitor(source, false_alarm_rate="0.1")
    with pytest.raises(FileNotFoundError, match=r"there is no file 'u\.onnx'"):
        Monitor("u.onnx")
    monitor = Monitor(source)
    for wrong in (None, 7, "a", rng.random(3), [rng.random(3)], torch.zeros(3)):
        with pytest.raises(TypeError, match=r"update: answers must be what the session returns, .*; pass session"):
            monitor.update(wrong)
    with pytest.raises(TypeError, match="update: 'entropy' must be an array of numbers, got could not convert string"):
        monitor.update({"entropy": ["high"], "mutual_information": [0.1]})
    with pytest.raises(ValueError, match=r"an answer must have entropy and mutual_information for each .*, got 3, 2"):
        monitor.update({"entropy": rng.random(3), "mutual_information": rng.random(2)})
    with pytest.raises(ValueError, match="update: an answer must have 'mutual_information', got entropy"):
        monitor.update(Answer({"entropy": rng.random(3)}))
    with pytest.raises(ValueError, match="update: 'entropy' must be finite, got 1 of 3 values that are not"):
        monitor.update(answers([0.1, np.nan, 0.2]))
    assert monitor.seen == 0
    for other in (Monitor(source, window=7), Monitor(reference(rng.random(90))), source):
        with pytest.raises(ValueError, match="merge: other must be a Monitor of the same file"):
            monitor.merge(other)
    with pytest.raises(ValueError, match=r"from_json: text must be what Monitor\.to_json wrote, got 'no json'"):
        Monitor.from_json("no json")
    with pytest.raises(ValueError, match=r"from_json: text must be what Monitor\.to_json wrote, got 'None'"):
        Monitor.from_json(None)
    with pytest.raises(ValueError, match="from_json: version must be 2, got 1; begin a new monitor"):
        Monitor.from_json(monitor.to_json().replace('"version": 2', '"version": 1'))


def test_a_stream_from_the_calibrated_world_and_one_from_another(calibrated):
    session, rng = UncertaintySession(calibrated[1]), np.random.default_rng(0)
    same, other = Monitor(session), Monitor(session)
    same.update(session(rng.normal(size=(3000, 4)).astype("float32")))
    assert not same.verdict().drifted
    other.update(session(0.1 * rng.normal(size=(60, 4)).astype("float32")))
    assert other.verdict().drifted


@pytest.mark.slow
@pytest.mark.parametrize("batches", [1, 3])
def test_a_file_without_a_calibration_is_watched_by_answers(tmp_path, batches):
    bnn, rng = model(1.0), np.random.default_rng(0)
    export_onnx(bnn, tmp_path / "m.onnx", torch.randn(2, 4), outputs="uncertainty", likelihood="categorical")
    session = UncertaintySession(tmp_path / "m.onnx")
    inputs = lambda n: rng.normal(size=(n, 4)).astype("float32")  # noqa: E731
    with pytest.raises(
        ValueError, match=r"must hold a reference distribution, got none; pass reference=session\(\.\.\.\)"
    ):
        Monitor(session)
    familiar = inputs(300)
    first = session(familiar) if batches == 1 else [session(part) for part in np.split(familiar, batches)]
    monitor, worker = Monitor(session, reference=first), Monitor(session, reference=first)
    assert set(json.loads(monitor.to_json())["bins"]) == {"entropy", "mutual_information", "class"}
    monitor.update(session(inputs(3000)))
    assert not monitor.verdict().drifted
    worker.update(session(0.1 * inputs(60)))
    assert worker.verdict().drifted
    assert monitor.merge(worker).seen == 3060  # references of the same answers are equal


def test_a_reference_of_answers_is_that_of_the_file(calibrated):
    _, path, _ = calibrated
    session, x = UncertaintySession(path), np.random.default_rng(0).normal(size=(100, 4)).astype("float32")
    answer = session(x)
    own = json.loads(Monitor(session, reference=answer).to_json())["bins"]["entropy"]
    edges = np.quantile(answer["entropy"].astype(float), [0.1, 0.5, 1.0])
    np.testing.assert_allclose(np.array(own[0])[[0, 4, 11]], edges, rtol=1e-12)
    assert sum(own[1]) == 101
    with pytest.raises(ValueError, match="Monitor: reference must be finite, got NaN or infinity in 'entropy'"):
        Monitor(session, reference=session(x * np.nan))
    with pytest.raises(ValueError, match=r"must have at least 10 examples, got 9 for .*; give more familiar data"):
        Monitor(session, reference=session(x[:9]))
    assert Monitor(session, reference=session(x[:10]), false_alarm_rate=np.float32(0.01)).false_alarm_rate < 0.011
    with pytest.raises(TypeError, match=r"Monitor: reference must be what the session returns, .*got ndarray"):
        Monitor(session, reference=x)
    for empty in ([], session(x[:0])):
        with pytest.raises(ValueError, match="must hold a reference distribution, got none"):
            Monitor(session, reference=empty)


def test_a_regression_is_watched_by_its_deviation(tmp_path):
    bnn, x = model(1.0), torch.randn(300, 4)
    held_out = bensemble.predict(bnn, x, 4, likelihood=Gaussian(0.1), generator=torch.Generator().manual_seed(0))
    calibration = bensemble.calibrate(held_out, held_out.mean + 0.1 * torch.randn(300, 3))
    options = {"num_samples": 4, "likelihood": Gaussian(0.1), "calibration": calibration}
    export_onnx(bnn, tmp_path / "m.onnx", x[:1], outputs="uncertainty", **options)
    session = UncertaintySession(tmp_path / "m.onnx")
    assert session.num_data == 300  # three terms of each
    monitor = Monitor(session)
    monitor.update(session(5 * np.random.default_rng(0).normal(size=(50, 4)).astype("float32")))
    assert monitor.verdict().measure == "std"
    assert monitor.verdict().drifted
