"""The distribution without torch: its wheel in an environment of its own, and its commands."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from uncertainty_files import CLASSES

from convert.runtime import UncertaintySession
from convert.runtime.__main__ import main

ROOT = Path(__file__).parents[2]


@pytest.mark.long
def test_the_small_wheel_works_where_there_is_no_torch():
    command = [sys.executable, str(ROOT / "tests" / "runtime_wheel_smoke.py"), "--linked"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr[-4000:]
    assert "session and monitor work" in done.stdout


def test_both_distributions_agree_in_version_python_and_bounds():
    tomllib = pytest.importorskip("tomllib", reason="Python 3.11")
    small, whole = (tomllib.loads((ROOT / p / "pyproject.toml").read_text())["project"] for p in ("runtime", "."))
    assert (small["version"], small["requires-python"]) == (whole["version"], whole["requires-python"])
    assert set(small["dependencies"]) <= set(whole["optional-dependencies"]["onnx"])


def test_inspect_and_report_of_a_file(calibrated, tmp_path, capsys):
    _, path, _ = calibrated
    assert main(["inspect", str(path), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["inputs"] == {"input": "float32['batch', 4]"}
    assert (found["classes"], found["networks"], found["method"]) == (list(CLASSES), 6, "samples")
    assert found["reference"] == {"entropy": 500, "class": 500}
    x = np.random.default_rng(0).normal(size=(150, 4)).astype("float32")
    np.savez(tmp_path / "x.npz", input=x, y=np.zeros(150, dtype=int))
    assert main(["report", str(path), "--data", str(tmp_path / "x.npz"), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert found["examples"] == 150
    assert 0 < found["accuracy"] < 1
    assert found["entropy"]["10%"] < found["entropy"]["50%"] < found["entropy"]["90%"]
    assert "150 examples seen" in found["drift"]
    assert main(["report", str(path), "--data", str(tmp_path / "x.npz")]) == 0
    assert "accuracy" in capsys.readouterr().out


def test_a_reader_that_leaves_early_is_no_error(calibrated):
    command = [sys.executable, "-m", "convert.runtime", "inspect", str(calibrated[1])]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, cwd=ROOT) as run:
        run.stdout.close()
        assert (run.stderr.read(), run.wait()) == ("", 0)


@pytest.mark.parametrize(("arguments", "message"), [(["inspect", "absent.onnx"], "there is no file 'absent.onnx'")])
def test_errors_are_one_line(arguments, message, capsys):
    assert main(arguments) == 1
    assert message in capsys.readouterr().err


@pytest.fixture(scope="module")
def answered(calibrated):
    x = np.random.default_rng(0).normal(size=(60, 4)).astype("float32")
    return x, UncertaintySession(calibrated[1])(x).probs.argmax(1)


def reported(path, folder, capsys, **arrays):
    np.savez(folder / "x.npz", **arrays)
    code = main(["report", str(path), "--data", str(folder / "x.npz"), "--json"])
    printed = capsys.readouterr()
    return json.loads(printed.out) if code == 0 else printed.err


@pytest.mark.parametrize(
    ("change", "accuracy"),
    [
        (lambda y: y, 1.0),
        (lambda y: y[:, None], 1.0),
        (lambda y: np.array(CLASSES)[y], 1.0),
        (lambda y: np.where(np.arange(60) < 9, -100, y), 1.0),
        (lambda y: np.where(np.arange(60) < 30, y, (y + 1) % len(CLASSES)), 0.5),
        (lambda y: np.full(60, -1), None),
    ],
)
def test_labels_count_where_there_is_one(calibrated, answered, tmp_path, capsys, change, accuracy):
    x, best = answered
    assert reported(calibrated[1], tmp_path, capsys, input=x, y=change(best)).get("accuracy") == accuracy


@pytest.mark.parametrize(
    "change",
    [lambda y: y[:5], lambda y: y[None], lambda y: y[0], lambda y: y.astype("f4"), lambda y: y > 0, lambda y: y + 9],
)
def test_labels_that_do_not_fit_are_refused(calibrated, answered, tmp_path, capsys, change):
    x, best = answered
    error = reported(calibrated[1], tmp_path, capsys, input=x, y=change(best))
    assert f"report: 'y' must hold class numbers below {len(CLASSES)} or class names, of shape [60], got" in error


def test_a_row_without_an_answer_does_not_end_the_report(calibrated, answered, tmp_path, capsys):
    x, best = answered
    x = np.where(np.arange(60)[:, None] == 3, np.nan, x).astype("float32")
    found = reported(calibrated[1], tmp_path, capsys, input=x, y=best)
    assert found["accuracy"] == round(59 / 60, 6)
    assert "59 examples seen" in found["drift"]
    assert "at least one example" in reported(calibrated[1], tmp_path, capsys, input=x[:0])
    assert "dtype" in reported(calibrated[1], tmp_path, capsys, input=x + 1j)


@pytest.mark.parametrize("data", [b"", b"PK\x03\x04 and no more", b"\x93NUMPY"])
def test_data_that_is_no_npz_file_is_named(calibrated, tmp_path, capsys, data):
    (tmp_path / "x.npz").write_bytes(data)
    assert main(["report", str(calibrated[1]), "--data", str(tmp_path / "x.npz")]) == 1
    assert "must be an npz file with the inputs by name" in capsys.readouterr().err
    np.save(tmp_path / "x.npy", np.ones(3))
    assert main(["report", str(calibrated[1]), "--data", str(tmp_path / "x.npy")]) == 1
    assert "must be an npz file with the inputs by name" in capsys.readouterr().err


def test_inputs_that_do_not_fit_are_named(calibrated, tmp_path, capsys):
    np.savez(tmp_path / "x.npz", other=np.zeros((2, 4)))
    assert main(["report", str(calibrated[1]), "--data", str(tmp_path / "x.npz")]) == 1
    assert "unknown; the file takes input" in capsys.readouterr().err
