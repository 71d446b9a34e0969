"""``last_layer`` on real architectures, in a process that has their libraries on its path."""

from __future__ import annotations

import os
import subprocess
import sys

import pytest

from .last_layers import EXPECTED
from .test_sample import HERE, INSTALLED


@pytest.mark.slow
@pytest.mark.libraries
def test_last_layers() -> None:
    if not all(folder.is_dir() for folder in INSTALLED):
        pytest.skip(f"{' or '.join(map(str, INSTALLED))} does not exist; `make test-libraries` makes both")
    path = os.pathsep.join(map(str, [HERE.parents[1], *INSTALLED]))
    environment = {**os.environ, "PYTHONPATH": path, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, "-m", "tests.zoo.last_layers"]
    done = subprocess.run(command, env=environment, cwd=HERE.parents[1], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    found = dict(line.split("\t") for line in done.stdout.splitlines() if "\t" in line)
    wrong = {name: found.get(name) for name, end in EXPECTED.items() if not _as_expected(found.get(name, ""), end)}
    assert not wrong


def _as_expected(found: str, expected: str) -> bool:
    """Names must be equal; of a refusal the beginning counts."""
    return found.startswith(expected) if " " in expected else found == expected
