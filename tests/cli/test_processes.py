"""The installed command in processes of its own: what is imported, what goes to which stream."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

SCRIPT = Path(sys.executable).with_name("bensemble.exe" if os.name == "nt" else "bensemble")

NETS = """
import sys
from torch import nn
print("printed by the user's module")
sys.stdout.write("and written\\n")
def build():
    print("printed by the builder")
    return nn.Sequential(nn.Flatten(), nn.Linear(4, 2))
"""


@pytest.fixture
def nets(tmp_path: Path) -> Path:
    (tmp_path / "nets.py").write_text(NETS)
    return tmp_path


PLAIN = {name: value for name, value in os.environ.items() if name not in ("FORCE_COLOR", "TTY_COMPATIBLE")}


def bensemble(*words: str, folder: Path) -> subprocess.CompletedProcess[str]:
    return subprocess.run([SCRIPT, *words], cwd=folder, env=PLAIN, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(
    ("words", "code"),
    [(["--help"], 0), (["plan", "--help"], 0), (["--version"], 0), (["plan", "m:f(x)"], 2), (["plan"], 2)],
)
def test_help_and_typing_mistakes_import_nothing_heavy(words: list[str], code: int, tmp_path: Path) -> None:
    program = f"""
import sys
sys.argv = ["bensemble", *{words!r}]
from convert.cli import main
try:
    main()
except SystemExit as end:
    assert end.code == {code}, end.code
heavy = {{"torch", "onnx", "onnxruntime", "numpy", "bensemble", "safetensors"}} & set(sys.modules)
assert not heavy, heavy
"""
    subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, check=True)


@pytest.mark.slow
def test_json_on_stdout_is_json_whatever_the_users_module_prints(nets: Path) -> None:
    done = bensemble("plan", "nets:build", "--json", folder=nets)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["model"] == "Sequential"
    assert done.stderr.splitlines() == ["printed by the user's module", "and written", "printed by the builder"]


@pytest.mark.long
def test_a_file_convert_py_of_the_user_does_no_harm(nets: Path) -> None:
    (nets / "convert.py").write_text("raise RuntimeError('must not run')")
    done = bensemble("plan", "nets:build", folder=nets)
    assert done.returncode == 0, done.stderr
    refused = bensemble("plan", "convert:build", folder=nets)
    assert refused.returncode == 1
    assert re.search(r"'convert' \(.*__init__\.py\) has no 'build'", refused.stderr)


@pytest.mark.skipif(os.name == "nt", reason="needs a pseudo-terminal")
@pytest.mark.slow
def test_a_spinner_shows_on_a_terminal_and_only_on_stderr(nets: Path) -> None:
    ours, theirs = os.openpty()
    try:
        words = [SCRIPT, "plan", "nets:build", "--json"]
        terminal = {**PLAIN, "TERM": "xterm"}
        with subprocess.Popen(
            words, cwd=nets, env=terminal, stdout=subprocess.PIPE, stderr=theirs, text=True
        ) as process:
            assert process.stdout is not None
            assert json.loads(process.stdout.read())["model"] == "Sequential"
        assert process.returncode == 0
        assert b"Importing torch" in os.read(ours, 100_000)
    finally:
        os.close(ours)
        os.close(theirs)


@pytest.mark.skipif(os.name == "nt", reason="needs a POSIX shell")
@pytest.mark.slow
def test_a_reader_that_goes_away_is_no_error(nets: Path) -> None:
    line = f"'{SCRIPT}' plan nets:build 2>messages | true"
    subprocess.run(["bash", "-c", line], cwd=nets, env=PLAIN, check=True)
    assert (nets / "messages").read_text().splitlines()[3:] == []


def test_without_typer_the_message_says_what_to_install(tmp_path: Path) -> None:
    program = "import sys; sys.modules['typer'] = None; from convert.cli import main; main()"
    done = subprocess.run([sys.executable, "-c", program], cwd=tmp_path, capture_output=True, text=True, check=False)
    assert done.returncode == 1
    assert done.stderr.startswith("Error: the command line needs 'typer', which is not installed; run `pip install")
