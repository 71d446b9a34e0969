"""Predicted classes in a monitor: false alarms, power, snapshots."""

from types import SimpleNamespace

import numpy as np
import pytest
import torch

from bensemble import predict
from bensemble.calibration import Calibration, calibrate
from convert.runtime import Monitor

COUNT = 400
SHARES = np.array([0.4, 0.2, 0.15, 0.1, 0.1, 0.05])
#: Twice as many of the last class but one, fewer of the first.
OTHERS = np.array([0.25, 0.2, 0.15, 0.1, 0.25, 0.05])


def probs_of(rng, count, shares=SHARES):
    """Probabilities whose largest is that of a class drawn by its share."""
    probs = rng.dirichlet(np.ones(len(shares)), count) / 2
    probs[np.arange(count), rng.choice(len(shares), count, p=shares)] += 0.5
    return probs


def session(rng):
    """What a monitor reads of a file with a reference of the classes alone."""
    values = probs_of(rng, COUNT).argmax(1) + rng.random(COUNT)
    quantiles = tuple(np.quantile(values, np.linspace(0, 1, 101)))
    return SimpleNamespace(name="a", reference={"class": quantiles}, outputs=("probs",), counts={"class": COUNT})


def alarm(seed, shares, examples, rate=0.05):
    rng = np.random.default_rng(seed)
    monitor = Monitor(session(rng), false_alarm_rate=rate)
    for _ in range(examples // 50):
        monitor.update({"probs": probs_of(rng, 50, shares)})
        if monitor.verdict().drifted:
            return True
    return False


@pytest.mark.long
def test_false_alarms_keep_their_rate_and_other_shares_are_found():
    false = sum(alarm(seed, SHARES, 1000) for seed in range(150))
    assert false <= 150 * 0.05 + 5 * (150 * 0.05 * 0.95) ** 0.5  # five standard errors
    assert sum(alarm(1000 + seed, OTHERS, 1000) for seed in range(20)) >= 18


def test_snapshots_merge_once_and_go_on():
    rng = np.random.default_rng(0)
    monitor = Monitor(session(rng))
    monitor.update({"probs": probs_of(rng, 700)})
    again = Monitor.from_json(monitor.to_json())
    assert again.verdict() == monitor.verdict() == again.merge(monitor).verdict()
    monitor.update({"probs": probs_of(rng, 2000, OTHERS)})
    verdict = again.merge(monitor).verdict()
    assert (verdict.drifted, verdict.seen, verdict.measure) == (True, 2700, "class")
    assert "drift in class since example" in str(verdict)
    assert "high class" not in str(verdict)


def test_an_answer_without_probabilities_is_refused():
    monitor = Monitor(session(np.random.default_rng(0)))
    with pytest.raises(ValueError, match="an answer must have the array 'probs', got entropy"):
        monitor.update({"entropy": np.ones(3)})
    assert monitor.seen == 0


def test_a_calibration_holds_the_quantiles_of_the_classes():
    torch.manual_seed(0)
    probs = torch.tensor(probs_of(np.random.default_rng(0), 300), dtype=torch.float32)
    network = torch.nn.Linear(6, 6, bias=False).eval()
    with torch.no_grad():
        network.weight.copy_(torch.eye(6))
    p = predict(network, probs.log(), likelihood="categorical")
    calibration = calibrate(p, probs.argmax(1), temperature=1.0)
    found = np.array(calibration.predicted)
    shares = np.bincount(probs.argmax(1), minlength=6) / 300
    levels = np.interp(np.arange(1, 6), found, np.linspace(0, 1, 101))
    np.testing.assert_allclose(levels, shares.cumsum()[:5], atol=0.02)
    assert Calibration.from_json(calibration.to_json()) == calibration
