"""What `make runtimes` says of one answer of one client."""

import numpy as np
import pytest

from .__main__ import judged
from .files import HELD_OUT, coded

LABEL = "no, it reads no sparse weights; export with sparse=False"


def entry(name="output", want=(1.0, 2.0), **changed):
    outputs = [{**coded(np.array(want), "float32"), "name": name}]
    runtimes = {"ONNX Runtime": "1.16 or newer, also node and web", "OpenVINO": "yes", "tract": LABEL}
    return {"outputs": outputs, "runtimes": runtimes, "tolerance": 1e-5, "rounding": None} | changed


def answer(*found, name="output"):
    return {"outputs": {name: coded(np.array(found), "float32")}}


@pytest.mark.parametrize(
    ("given", "line", "cell"),
    [
        (entry(), answer(1.0, 2.0), "right"),
        (entry(), answer(1.0, 2.00001), "right"),  # over the largest output
        (entry(), answer(1.0, 2.0001), "wrong (5.0e-05)"),
        (entry(want=(0.0, 0.01)), answer(0.0, 0.010009), "right"),  # or over 1
        (entry(tolerance=2e-2), answer(1.0, 2.02), "right (1.0e-02)"),
        (entry(tolerance=0.05, rounding=0.01), answer(1.1, 2.0), "right (4.5e-02)"),  # root mean squares
        (entry(tolerance=0.05, rounding=0.01), answer(1.2, 2.0), "wrong (8.9e-02)"),
        (entry(), answer(1.0), "wrong: shape of output"),
        (entry(), answer(1.0, 2.0, name="other"), "wrong: shape of output"),
        (entry(), answer(1.0, np.nan), "wrong (nan)"),
        (entry(), None, "wrong: it crashed"),
        (entry(), {"error": "Sparse"}, "wrong: refused, without a label (its report says 'yes')"),
    ],
)
def test_a_cell_says_what_an_answer_is_worth(given, line, cell):
    assert judged(given, line, "OpenVINO") == cell


def test_a_refusal_needs_the_label_of_the_report():
    assert judged(entry(), {"error": "any"}, "tract") == "refused: it reads no sparse weights"
    assert judged(entry(), {"error": "any"}, "node").startswith("wrong: refused, without a label")


def test_a_p_value_may_be_one_step_off():
    step = 1 / (HELD_OUT + 1)
    given = entry(name="novelty_pvalue", want=(0.5, 0.5))
    assert judged(given, answer(0.5, 0.5 + step, name="novelty_pvalue"), "OpenVINO") == "right"
    assert judged(given, answer(0.5, 0.5 + 1.1 * step, name="novelty_pvalue"), "OpenVINO").startswith("wrong")
