"""``bensemble doctor`` on a machine that lacks something, and the command line as ``python -m bensemble``."""

from __future__ import annotations

import json
import subprocess
import sys
from importlib.metadata import version

import pytest
from typer.testing import CliRunner

from convert.cli import doctor
from convert.cli.app import app


def test_what_is_missing_is_said_with_the_extra_that_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    declared = ["torch>=2", 'not-there[fast]>=1 ; extra == "io"', "typer; extra == 'cli'"]
    monkeypatch.setattr(doctor, "requires", lambda _: declared)
    found = doctor.diagnose()
    assert found.missing == {"io": ["not-there"]}
    assert found.extras["cli"] == {"typer": version("typer")}
    assert "missing: not-there" in str(found)
    assert "pip install '.[io]'" in str(found)


def test_everything_is_there_for_the_command_line_itself() -> None:
    result = CliRunner().invoke(app, ["doctor", "--json"])
    found = json.loads(result.stdout)
    assert result.exit_code == 0
    assert found["versions"]["torch"] == version("torch")
    assert set(found["extras"]["cli"]) == {"typer", "rich"}
    assert "cli" not in found["missing"]


def test_the_package_is_the_command_line() -> None:
    run = subprocess.run([sys.executable, "-m", "bensemble", "--version"], capture_output=True, text=True, check=False)
    assert run.stdout == f"bensemble {version('bensemble')}\n", run.stderr
