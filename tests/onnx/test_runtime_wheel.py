"""The distribution without torch: its wheel in an environment of its own, and its commands."""

import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
from uncertainty_files import CLASSES

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


@pytest.mark.parametrize(("arguments", "message"), [(["inspect", "absent.onnx"], "there is no file 'absent.onnx'")])
def test_errors_are_one_line(arguments, message, capsys):
    assert main(arguments) == 1
    assert message in capsys.readouterr().err


def test_inputs_that_do_not_fit_are_named(calibrated, tmp_path, capsys):
    np.savez(tmp_path / "x.npz", other=np.zeros((2, 4)))
    assert main(["report", str(calibrated[1]), "--data", str(tmp_path / "x.npz")]) == 1
    assert "unknown; the file takes input" in capsys.readouterr().err
